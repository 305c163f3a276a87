"""Mentions of operands are those of the formula, as it is written."""

import pytest
import torch

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops.lib.operand_reads import operand_reads
from fqt_deploy.ops.op import OPS

aten, fqt = torch.ops.aten, torch.ops.fqt
X = torch.zeros(4, 16)
IMAGE = torch.zeros(2, 8, 8, 4)
CALLS = {
    "add": (aten.add.Tensor, (X, X), (1, 1)),
    "times_a_number": (aten.mul.Tensor, (X, 2.0), (1,)),
    "cube": (aten.pow.Tensor_Scalar, (X, 3), (3,)),
    "sign": (aten.sign.default, (X,), (2,)),
    "relu": (aten.relu.default, (X,), (1,)),
    "where": (aten.where.self, (X > 0, X, X), (1, 1, 1)),
    "sum": (aten.sum.dim_IntList, (X, [1]), (1,)),
    "pooling": (fqt.max_pool2d.default, (IMAGE, [2, 2], [2, 2], [0, 0]), (4,)),
}


@pytest.mark.parametrize("name", CALLS)
def test_simple_formulas(name):
    target, args, expected = CALLS[name]
    assert operand_reads(OPS[target], args, {}, target(*args)) == expected


def test_repeated_subexpressions_count_as_often_as_they_are_written():
    (reads,) = operand_reads(OPS[aten.erf.default], (X,), {}, X)
    formula = OPS[aten.erf.default].bound((X,), {}).expression
    assert reads == str(formula(_variable())).count("mentioned")
    assert reads > 50


def test_attributes_matter():
    none, tanh = (
        operand_reads(OPS[aten.gelu.default], (X,), {"approximate": approximate}, X) for approximate in ("none", "tanh")
    )
    assert none != tanh


def _variable():
    from tvm import tirx

    return tirx.Var("mentioned", "float32")
