"""The loop nests of one op on operands like given ones, as code generation makes them, and in one form."""

import torch
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import FQT_OPS, Kind
from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded
from fqt_deploy.targets.products import product_of


def op_function(name, arguments):
    """The unscheduled function of op ``name``: of its tensors in order, then its outputs."""
    operands = [
        te.placeholder(list(a.shape), dtype_name(a.dtype), name=f"p{i}") if isinstance(a, torch.Tensor) else a
        for i, a in enumerate(arguments)
    ]
    result = FQT_OPS[name](*operands).compute()
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    function = te.create_prim_func([*(o for o in operands if isinstance(o, te.Tensor)), *outputs])
    attributes = {"fqt.op": name, "fqt.outputs": len(outputs), "global_symbol": "main"}
    attributes["tirx.noalias"] = FQT_OPS[name].traits.kind is not Kind.UPDATE
    attributes[ARGUMENTS] = encoded(getattr(torch.ops.fqt, name).default, arguments)
    return function.with_attrs(attributes)


def in_form(form, name, arguments, features):
    """The kernel of a 1-bit product in ``form``; None if the form does not accept it."""
    product = product_of(op_function(name, arguments))
    return form.kernel(product, form.tiles(product, features)[0], features) if form.accepts(product, features) else None
