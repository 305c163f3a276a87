"""Every ATen op with a kernel: its loop nest, as the CPU target schedules it, computes what PyTorch computes."""

import numpy as np
import pytest
import torch
import tvm
from torch._subclasses import FakeTensorMode
from tvm import te

from fqt_deploy.ops.aten import pointwise as aten_pointwise
from fqt_deploy.ops.aten import reductions as aten_reductions
from fqt_deploy.ops.aten.indexing import INDEXING
from fqt_deploy.ops.aten.pointwise import POINTWISE, tvm_dtype
from fqt_deploy.ops.aten.reductions import REDUCTIONS
from fqt_deploy.targets.registry import make_target
from tests.export.test_aten_tables import CALLS

aten = torch.ops.aten
WIDE = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))
SMALL = torch.tensor([1e-6, -1e-7, 0.0, 0.4, -0.5, 80.0, -80.0])
MORE = {
    **{op: [((WIDE,), {}), ((WIDE[0],), {})] for op in (aten.sum.default, aten.mean.default)},
    **{op: [((WIDE, axes, keep), {}) for axes in ([0], [2], [0, 1], [1, 2], [0, 1, 2]) for keep in (False, True)]
       for op in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default)},
    **{op: [((WIDE[0] > 0, WIDE[1] > 0), {})] for op in (aten.eq.Tensor, aten.ne.Tensor)},
    aten.expm1.default: [((SMALL,), {})],
    aten.log1p.default: [((SMALL.abs(),), {})],
    aten.isnan.default: [((torch.tensor([0.0, float("nan"), float("inf")]),), {})],
    aten.constant_pad_nd.default: [((WIDE, [1, 2, 0, 3, -1, 1], 0.5), {})],
}  # fmt: skip
"""Calls that reach what a schedule does to whole vectors, and scalars."""
CASES = {
    f"{str(op).replace('.', '_')}_{i}": (op, *call)
    for op in CALLS
    for i, call in enumerate([*CALLS[op], *MORE.get(op, [])])
    if op is not aten.empty.memory_format  # its values mean nothing
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
        shape, dtype = list(value.shape), tvm_dtype(value.dtype)
        placeholders.append(te.placeholder(shape, dtype, name=f"operand{len(placeholders)}"))
        return placeholders[-1]

    operands = tuple(map(operand, args))
    with FakeTensorMode(allow_non_fake_inputs=True):
        result = op(*args, **kwargs)
    if op in POINTWISE:
        output = aten_pointwise.compute(op, result, operands, kwargs, "result")
    elif op in REDUCTIONS:
        output = aten_reductions.compute(op, result, operands, "result")
    else:
        output = INDEXING[op](result, *operands, name="result")
    attributes = {"fqt.op": name, "fqt.outputs": 1, "tirx.noalias": True}
    function = te.create_prim_func([*placeholders, output]).with_attrs(attributes)
    return make_target("cpu").schedule(function).with_attr("global_symbol", name)


@pytest.fixture(scope="module")
def library():
    return tvm.compile(tvm.IRModule({name: kernel(name) for name in CASES}), make_target("cpu").tvm_target)


def tensors(value):
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return [value] if isinstance(value, torch.Tensor) else []


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_pytorch(library, name):
    op, args, kwargs = CASES[name]
    expected = op(*args, **kwargs).contiguous().numpy()
    result = tvm.runtime.empty(expected.shape, str(expected.dtype))
    library[name](*[tvm.runtime.tensor(tensor.contiguous().numpy()) for tensor in tensors(args)], result)
    np.testing.assert_allclose(
        result.numpy(), expected, rtol=2e-6, atol=1e-6 if "gelu" in name or "erf" in name else 4e-7
    )
