"""Every ATen op with a kernel: its loop nest, as the CPU target schedules it, computes what PyTorch computes."""

import numpy as np
import pytest
import torch
import tvm
from torch._subclasses import FakeTensorMode
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.call import bind
from fqt_deploy.ops.aten.aten_op import aten_ops, define_aten
from fqt_deploy.ops.aten.creation import Zeros
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import Kind
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples
from fqt_deploy.targets.registry import make_target

aten = torch.ops.aten
CASES = {
    f"{str(op.target).replace('.', '_')}_{i}": (op, *call)
    for op in aten_ops().values()
    for i, call in enumerate(op.samples)
    if op.target is not aten.empty.memory_format  # its values mean nothing
}


def kernel(name):
    """The scheduled kernel of one call."""
    op, args, kwargs = CASES[name]
    placeholders = []

    def operand(value):
        if isinstance(value, list):
            return [operand(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        shape, dtype = list(value.shape), dtype_name(value.dtype)
        placeholders.append(te.placeholder(shape, dtype, name=f"operand{len(placeholders)}"))
        return placeholders[-1]

    operands = [operand(value) for value in args]
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = op.target(*args, **kwargs)
    output = op.bound(operands, kwargs).stages(result, "result")
    attributes = {"fqt.op": name, "fqt.outputs": 1, "tirx.noalias": True}
    function = te.create_prim_func([*placeholders, output]).with_attrs(attributes)
    return make_target("cpu").schedule(function).with_attr("global_symbol", name)


@pytest.fixture(scope="module")
def library(request, cases):
    """The kernels of all calls that a test will make, compiled at once."""
    names = [case["name"] for case in cases(request.module, "library")]
    return tvm.compile(tvm.IRModule({name: kernel(name) for name in names}), make_target("cpu").tvm_target)


def tensors(value):
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.quick(per=lambda case: CASES[case["name"]][0])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(library, name):
    op, args, kwargs = CASES[name]
    expected = op.target(*args, **kwargs).contiguous().numpy()
    result = tvm.runtime.empty(expected.shape, str(expected.dtype))
    library[name](*[tvm.runtime.tensor(tensor.contiguous().numpy()) for tensor in tensors(args)], result)
    np.testing.assert_allclose(
        result.numpy(), expected, rtol=2e-6, atol=1e-6 if "gelu" in name or "erf" in name else 4e-7
    )


@pytest.mark.parametrize("op", aten_ops().values(), ids=str)
def test_samples_give_every_honoured_argument_a_value_of_its_own(op):
    """Each argument that has a default and is honoured takes another value in some sample."""
    defaults = {a.name: a.default_value for a in op.target._schema.arguments if a.has_default_value()}
    honoured = [name for name in op.honoured() if name in defaults and name not in ("keepdim", "dim", "end")]
    for name in honoured:
        values = [bind(op.target, args, kwargs)[name] for args, kwargs in op.samples]
        assert any(value != defaults[name] for value in values), name


FACTS = {
    "kind": Kind.ELEMENTWISE, "batch": no_samples, "zero": NEVER_ZERO, "sign": ANY_SIGN, "nan": Nan.UNKNOWN,
    "layout": Layout.OPAQUE,
}  # fmt: skip


@pytest.mark.parametrize("trait", FACTS)
def test_a_definition_without_a_trait_is_an_error(trait):
    facts = {name: value for name, value in FACTS.items() if name != trait}
    with pytest.raises(TypeError, match=trait):
        define_aten(aten.sin.default, samples=[((), {})], **facts)


def test_a_definition_must_fit_the_schema():
    with pytest.raises(TypeError, match="'self'"):

        @define_aten(aten.atanh.default, samples=[((), {})], **FACTS)
        class Lacking(Zeros):
            size: list[int]
