"""Ops that are spelled in simpler ones have the value and the gradient of the op, and are gone from the graph."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from fqt_deploy.capture.decompositions import decompositions
from fqt_deploy.capture.own_decompositions import OWN

X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
PLACES = torch.tensor([2, 0, -1])

CASES = {
    "any of axes": lambda x: torch.any(x > 1, 1, keepdim=True) * x,
    "norm": lambda x: torch.linalg.vector_norm(x, 2, -1),
    "norm of all": lambda x: torch.linalg.vector_norm(x),
    "norm 1": lambda x: torch.linalg.vector_norm(x, 1, (0, 2), True),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, 1),
    "norm 0": lambda x: torch.linalg.vector_norm(x, 0, 1) + x.sum(),
    "largest": lambda x: torch.linalg.vector_norm(x, math.inf, 1),
    "smallest": lambda x: torch.linalg.vector_norm(x, -math.inf, 1),
    "norm with zeros": lambda x: torch.linalg.vector_norm(torch.relu(x - 1.5), 2, -1),
    "deviation": lambda x: x.std(1),
    "variance": lambda x: x.var((0, 2), unbiased=False, keepdim=True),
    "variance of all": lambda x: x.var(),
    "variance of two more": lambda x: torch.var(x, 2, correction=2),
    "max": lambda x: x.max(1)[0] * x.max(1)[1],
    "min": lambda x: x.min(2, True)[0],
    "clamp": lambda x: torch.clamp(x, x[:1] * 0 - 0.5, x[:, :1] * 0 + 0.5),
    "empty": lambda x: torch.empty_like(x.permute(0, 2, 1)).fill_(2) * x.permute(0, 2, 1),
    "index": lambda x: x[PLACES, :, PLACES],
    "index, last axis": lambda x: x[:, PLACES, None, PLACES],
    "put": lambda x: torch.index_put(x, (PLACES, torch.arange(4)[:, None], PLACES), torch.tensor(3.0)),
    "put side by side": lambda x: torch.index_put(x, (PLACES,), x[:1] * 2, True),
    "scatter": lambda x: x.scatter(1, torch.tensor([[[0], [2]]]).expand(3, 2, 5), 7.0),
    "powers of two": lambda x: torch.exp2(x) + torch.log2(x.exp() + 1) + torch.log10(x.exp() + 1),
    "infinite": lambda x: torch.where(torch.isinf(x / (x > 0)), 0.0, x),
    "strided": lambda x: torch.as_strided_copy(x, (5, 3, 2, 2), (1, 20, 10, 5)),
    "written through strides": lambda x: torch.as_strided_scatter(x * 2, x.permute(2, 0, 1), (5, 3, 4), (1, 20, 5)),
    "hyperbolic": lambda x: torch.sinh(x) + torch.cosh(x),
}
IMAGES = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest of a size": lambda x: F.interpolate(x, size=(7, 3)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, smaller": lambda x: F.interpolate(x, size=(3, 2), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
}


def with_gradient(function):
    def both(x):
        x = x.detach().requires_grad_()
        y = function(x)
        weight = torch.linspace(0.5, 1.5, y.numel()).reshape(y.shape)
        return y, *torch.autograd.grad((y * weight).sum(), x)

    return both


@pytest.mark.parametrize(
    ("function", "x"),
    [pytest.param(f, X, id=name) for name, f in CASES.items()]
    + [pytest.param(f, IMAGE, id=name) for name, f in IMAGES.items()],
)
def test_value_and_gradient_are_those_of_the_op(function, x):
    traced = make_fx(with_gradient(function), decomposition_table=decompositions())(x)
    for actual, expected in zip(traced(x), with_gradient(function)(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=2e-6, atol=2e-6)
    targets = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    kept = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.scatter.value}
    assert not targets & (OWN.keys() - kept)
