"""Indices that name no place: what is read is NaN, zero or false, what is written is dropped."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.targets.registry import make_target
from tests.targets.aten_kernel import aten_function, tensors_of

aten = torch.ops.aten
FAR = 2**40
"""An index whose low 32 bits are 0: what narrows it before it is checked reads the first place."""
X = torch.arange(1.0, 13).view(3, 4)
NAN = float("nan")
READ = {
    "gather": (aten.gather.default, (X, 1, torch.tensor([[0, 4], [-1, 3], [FAR, 1]])), [[1, NAN], [NAN, 8], [NAN, 10]]),
    "gather of integers": (
        aten.gather.default, (X.int(), 1, torch.tensor([[0, 4], [-1, 3], [FAR, 1]])), [[1, 0], [0, 8], [0, 10]],
    ),
    "index_select": (
        aten.index_select.default, (X, 0, torch.tensor([2, 3, -1, FAR + 1])),
        [[9, 10, 11, 12], [NAN] * 4, [NAN] * 4, [NAN] * 4],
    ),
    "index_select of conditions": (
        aten.index_select.default, (X > 0, 0, torch.tensor([2, 99])), [[True] * 4, [False] * 4],
    ),
    "index": (
        aten.index.Tensor, (X, [torch.tensor([-1, 3, -4, FAR, 0])]),
        [[9, 10, 11, 12], [NAN] * 4, [NAN] * 4, [NAN] * 4, [1, 2, 3, 4]],
    ),
    "index of two axes": (
        aten.index.Tensor, (X, [torch.tensor([0, 0, -3, 2, -4]), torch.tensor([5, -4, -1, FAR, 0])]),
        [NAN, 1, 4, NAN, NAN],
    ),
    "embedding": (
        aten.embedding.default, (X, torch.tensor([2, -1, 3, FAR])), [[9, 10, 11, 12], [NAN] * 4, [NAN] * 4, [NAN] * 4],
    ),
}  # fmt: skip
WRITTEN = {
    "index_put": (
        aten.index_put.default, (X, [torch.tensor([-1, 3, -4, FAR])], torch.full((4, 4), 50.0)),
        [[1, 2, 3, 4], [5, 6, 7, 8], [50] * 4],
    ),
    "index_put of two axes, added": (
        aten.index_put.default,
        (X, [torch.tensor([0, 0, -3, 2]), torch.tensor([5, -4, -1, FAR])], torch.full((4,), 50.0), True),
        [[51, 2, 3, 54], [5, 6, 7, 8], [9, 10, 11, 12]],
    ),
    "scatter": (
        aten.scatter.src, (X, 1, torch.tensor([[0, 4], [-1, 3], [FAR, 1]]), torch.full((3, 2), 50.0)),
        [[50, 2, 3, 4], [5, 6, 7, 50], [9, 50, 11, 12]],
    ),
    "scatter of a number": (
        aten.scatter.value, (X, 1, torch.tensor([[4], [-1], [FAR]]), 50.0), X.tolist(),
    ),
    "scatter_add": (
        aten.scatter_add.default, (X, 0, torch.tensor([[0, 3, -1, FAR]]), torch.full((1, 4), 50.0)),
        [[51, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]],
    ),
    "gradient of an embedding": (
        aten.embedding_dense_backward.default, (X, torch.tensor([1, FAR, -1]), 2, -1, False),
        [[0, 0, 0, 0], [1, 2, 3, 4]],
    ),
}  # fmt: skip
CASES = READ | WRITTEN


@pytest.fixture(scope="module")
def library():
    target = make_target("cpu")
    functions = {}
    for name, (op, args, _) in CASES.items():
        symbol = name.replace(" ", "_").replace(",", "")
        function = target.schedule(aten_function(aten_ops()[op], args, {}))
        functions[symbol] = function.with_attr("global_symbol", symbol)
    return tvm.compile(tvm.IRModule(functions), target.tvm_target)


@pytest.mark.parametrize("name", CASES)
def test_an_index_out_of_range_reads_nothing_and_writes_nothing(library, name):
    _, args, expected = CASES[name]
    wanted = np.array(expected, np.float32).astype(str(args[0].dtype).removeprefix("torch."))
    result = tvm.runtime.tensor(np.full(wanted.shape, 77, wanted.dtype))
    operands = [tvm.runtime.tensor(tensor.contiguous().numpy()) for tensor in tensors_of(args)]
    library[name.replace(" ", "_").replace(",", "")](*operands, result)
    np.testing.assert_array_equal(result.numpy(), wanted)
