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
    "largest and smallest of all": lambda x: x.max() * x + x.min() * x + (x > 0).max() * x + (x > -9).min() * x,
    "larger and smaller": lambda x: torch.fmax(x, x.flip(1)) + torch.fmin(x, x.flip(1).clamp(max=0)),
    "distance": lambda x: torch.dist(x, x.flip(1) * 2) + torch.dist(x, x.flip(1) * 2, 1) + x,
    "max of conditions": lambda x: (x > 1).amax(1, True) * x + (x > -1).amin((0, 2), True) * x + (x > 0).amax() * x,
    "clamp": lambda x: torch.clamp(x, x[:1] * 0 - 0.5, x[:, :1] * 0 + 0.5),
    "empty": lambda x: torch.empty_like(x.permute(0, 2, 1)).fill_(2) * x.permute(0, 2, 1),
    "circular": lambda x: F.pad(x, (1, 2), mode="circular"),
    "index": lambda x: x[PLACES, :, PLACES],
    "index, last axis": lambda x: x[:, PLACES, None, PLACES],
    "put": lambda x: torch.index_put(x, (PLACES, torch.arange(4)[:, None], PLACES), torch.tensor(3.0)),
    "put side by side": lambda x: torch.index_put(x, (PLACES,), x[:1] * 2, True),
    "scatter": lambda x: x.scatter(1, torch.tensor([[[0], [2]]]).expand(3, 2, 5), 7.0),
    "powers of two": lambda x: torch.exp2(x) + torch.log2(x.exp() + 1) + torch.log10(x.exp() + 1),
    "infinite": lambda x: torch.where(torch.isinf(x / (x > 0)), 0.0, x),
    "strided": lambda x: torch.as_strided_copy(x, (5, 3, 2, 2), (1, 20, 10, 5)),
    "written through strides": lambda x: torch.as_strided_scatter(x * 2, x.permute(2, 0, 1), (5, 3, 4), (1, 20, 5)),
    "weight norm": lambda x: torch._weight_norm(x, x[:, :1, :1] * 0 + 2.0, 0),
    "weight norm, last axis": lambda x: torch._weight_norm(x, x[:1, :1] * 0 + 2.0, 2),
    "sorted": lambda x: x.sort(1)[0] * x.sort(0, descending=True)[1],
    "sorted, ties and NaN": lambda x: torch.where(x > 1, math.nan, torch.round(x)).sort(dim=1, stable=True)[1] * x,
    "descending, ties": lambda x: torch.round(x).argsort(dim=-1, descending=True, stable=True) * x,
    "largest three": lambda x: x.topk(3, 1)[0] * x.topk(3, 1)[1],
    "smallest two": lambda x: x.topk(2, -1, largest=False)[0],
    "second": lambda x: x.kthvalue(2, 1)[0] * x.kthvalue(2, 1, keepdim=True)[1].squeeze(1),
    "median": lambda x: x.median(1)[0] + x.median(-1, True)[0].sum(-1).sum(),
    "median of all": lambda x: x.median() * x,
    "running extremes": lambda x: x.cummax(1)[0] * x.cummin(2)[0] + x.round().cummax(1)[1],
    "bucket": lambda x: torch.bucketize(x, torch.linspace(-1, 1, 5)) * x,
    "bucket, right": lambda x: torch.bucketize(x.round(), torch.arange(-1.0, 2), right=True, out_int32=True) * x,
    "searched": lambda x: torch.searchsorted(torch.linspace(-1, 1, 5).expand(3, 4, 5), x.detach(), side="right") * x,
    "product": lambda x: x.prod(1) + x.prod(2, keepdim=True).sum(),
    "running product": lambda x: x.cumprod(2) + x.cumprod(0),
    "distances": lambda x: torch.cdist(x, x.flip(1)) + torch.cdist(x, x.roll(1, 1), p=1.0),
    "bilinear layer": lambda x: F.bilinear(x, x.flip(1), torch.linspace(-1, 1, 50).view(2, 5, 5)),
    "sum of scattered": lambda x: x.scatter_reduce(
        1, torch.tensor([[[0], [2], [0], [3]]]).expand(3, 4, 5), x * 2, "sum"
    ),
    "any": lambda x: torch.any(x > 1) * x,
    "strided, overlapping": lambda x: torch.as_strided(x * 2, (4, 3, 2), (5, 5, 1)),
    "windows": lambda x: x.unfold(1, 2, 1) * 2,
    "windows of the last axis": lambda x: x.unfold(-1, 3, 2),
    "view of windows": lambda x: x.transpose(1, 2).unfold(1, 5, 1).view(3, 20),
    "max of truth values": lambda x: (x > 1).max(1)[0] * (x > 1).max(1)[1] * x.sum(1),
    "diagonal": lambda x: x.diagonal(1, 1, 2) + x.diagonal(-1, 2, 1)[:, :4],
    "diagonal matrix": lambda x: torch.diag_embed(x),
    "replicated": lambda x: F.pad(x, (2, 1), mode="replicate"),
    "angles": lambda x: torch.asin(torch.sin(x) * 0.9) + torch.acos(torch.sin(x) * 0.9) + torch.atan2(x, x.flip(1)),
    "inverse hyperbolic": lambda x: torch.asinh(x) + torch.acosh(x.abs() + 1.1) + torch.atanh(torch.tanh(x) * 0.9),
    "length and sign": lambda x: torch.hypot(x, x.flip(1)) + torch.copysign(x, x.flip(2)),
    "two decimals": lambda x: x + torch.round(x * 100, decimals=-1) + torch.round(x.detach(), decimals=1),
    "exclusive": lambda x: ((x > 0) ^ (x.flip(1) > 0)) * x + torch.logical_xor(x > 1, x > 0),
    "hyperbolic": lambda x: torch.sinh(x) + torch.cosh(x),
}
IMAGES = {
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest of a size": lambda x: F.interpolate(x, size=(7, 3)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear, smaller": lambda x: F.interpolate(x, size=(3, 2), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", align_corners=True),
    "replicated image": lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"),
    "antialiased": lambda x: F.interpolate(x, size=(3, 2), mode="bilinear", antialias=True),
    "antialiased, larger": lambda x: F.interpolate(x, size=(7, 9), mode="bilinear", antialias=True),
    "antialiased, corners": lambda x: F.interpolate(x, (2, 3), mode="bilinear", antialias=True, align_corners=True),
    "antialiased bicubic": lambda x: F.interpolate(x, size=(3, 2), mode="bicubic", antialias=True),
    "antialiased bicubic, by a factor": lambda x: F.interpolate(x, scale_factor=0.7, mode="bicubic", antialias=True),
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
    kept = {
        torch.ops.aten.view.default,
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.scatter.value,
        torch.ops.aten.amax.default,
        torch.ops.aten.amin.default,
    }
    assert not targets & (OWN.keys() - kept)


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [
        (lambda n: torch.randn(n), 0, 1),
        (lambda n: torch.randn_like(torch.zeros(n)), 0, 1),
        (lambda n: torch.empty(n).normal_(3, 0.5), 3, 0.5),
        (lambda n: torch.empty(n).uniform_(-1, 3), 1, 4 / math.sqrt(12)),
        (lambda n: torch.empty(n).exponential_(2.0), 0.5, 0.5),
        (lambda n: torch.bernoulli(torch.full((n,), 0.3)), 0.3, math.sqrt(0.21)),
        (lambda n: torch.randint(2, 6, (n,)).float(), 3.5, math.sqrt(15 / 12)),
        (lambda n: torch.randint(4, (n,)).float(), 1.5, math.sqrt(15 / 12)),
    ],
    ids=["randn", "randn_like", "normal_", "uniform_", "exponential_", "bernoulli", "randint", "randint from 0"],
)
def test_distributions_are_made_of_uniform_numbers(draw, mean, deviation):
    traced = make_fx(torch.func.functionalize(lambda: draw(20000)), decomposition_table=decompositions())()
    drawing = {node.target for node in traced.graph.nodes if torch.Tag.nondeterministic_seeded in tags(node)}
    assert drawing == {torch.ops.aten.rand.default}
    torch.manual_seed(0)
    numbers = traced()
    assert numbers.mean().item() == pytest.approx(mean, abs=0.03 * deviation)
    assert numbers.std().item() == pytest.approx(deviation, rel=0.03)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_a_leaky_relu_draws_a_slope_for_each_negative_element(training, inplace):
    """And has their mean in evaluation."""

    def step(x):
        y, pull = torch.func.vjp(lambda x: torch.nn.functional.rrelu(x * 1, 0.2, 0.6, training, inplace), x)
        return y, *pull(torch.ones_like(y))

    x = torch.linspace(-1, 1, 4000)
    traced = make_fx(torch.func.functionalize(step), decomposition_table=decompositions())(x)
    drawing = {node.target for node in traced.graph.nodes if torch.Tag.nondeterministic_seeded in tags(node)}
    assert drawing == ({torch.ops.aten.rand.default} if training else set())
    torch.manual_seed(0)
    y, gradient = traced(x)
    torch.testing.assert_close(gradient, y / x)
    slopes = gradient[:2000]
    assert torch.equal(y[2000:], x[2000:])
    assert slopes.mean().item() == pytest.approx(0.4, abs=0.01)
    assert slopes.std().item() == pytest.approx(0.4 / math.sqrt(12) if training else 0, rel=0.05, abs=1e-6)
    assert 0.2 <= slopes.min() <= slopes.max() <= 0.6


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.as_strided(x, (3, 2), (20, 1), 3),
        lambda x: torch.as_strided_scatter(x, x[:, :2, 0], (3, 2), (20, 1), 3),
    ],
    ids=["read", "written"],
)
def test_a_strided_view_with_an_offset_is_made_of_places(function):
    traced = make_fx(torch.func.functionalize(function), decomposition_table=decompositions())(X)
    torch.testing.assert_close(traced(X), function(X))
    assert not [n for n in traced.graph.nodes if "as_strided" in str(n.target)]


@pytest.mark.parametrize("offset", [-4, -1, 0, 2, 6])
@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 6), (5, 2)])
@pytest.mark.parametrize("op", [torch.tril_indices, torch.triu_indices], ids=["lower", "upper"])
def test_triangles_are_made_of_places(op, rows, columns, offset):
    traced = make_fx(lambda: op(rows, columns, offset), decomposition_table=decompositions())()
    assert torch.equal(traced(), op(rows, columns, offset))
    assert not [n for n in traced.graph.nodes if "indices" in str(n.target)]


def tags(node):
    return getattr(node.target, "tags", ())
