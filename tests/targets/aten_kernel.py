"""The loop nests of calls of ATen ops, as code generation makes them."""

import torch
from torch._subclasses import FakeTensorMode
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.ops.lib.dtypes import dtype_name


def aten_function(op, args, kwargs):
    """The unscheduled function of one call: of its tensors in order, then its output."""
    placeholders = []

    def operand(value):
        if isinstance(value, list):
            return [operand(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        name = f"operand{len(placeholders)}"
        placeholders.append(te.placeholder(list(value.shape), dtype_name(value.dtype), name=name))
        return placeholders[-1]

    operands = [operand(value) for value in args]
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = op.target(*args, **kwargs)
    output = op.bound(operands, kwargs).stages(result, "result")
    attributes = {"fqt.op": op.name, "fqt.outputs": 1, "tirx.noalias": True}
    return te.create_prim_func([*placeholders, output]).with_attrs(attributes)


def samples_of(chosen):
    """The samples, by name, of ops whose functions ``chosen`` takes."""
    return {
        f"{op.target}_{i}".replace(".", "_"): (op, *call)
        for op in aten_ops().values()
        for i, call in enumerate(op.samples)
        if chosen(aten_function(op, *call))
    }


def tensors_of(value):
    """The tensors in nested arguments, in order."""
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return [value] if isinstance(value, torch.Tensor) else []
