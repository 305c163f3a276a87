"""NaN and rounding in emitted kernels: a few of what ``tests/ops/test_special_values.py`` tries on the CPU."""

import pytest
import torch
import tvm
from torch import fx
from torch._subclasses import FakeTensorMode

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.codegen.build import lower_relax
from fqt_deploy.codegen.kernel_function import kernel_function
from fqt_deploy.codegen.kernel_grouping import Kernel
from fqt_deploy.core.graph import propagate

aten = torch.ops.aten
NAN, INFINITY = float("nan"), float("inf")
X = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, INFINITY, -INFINITY, NAN, 1e-8, 3e38, 16777216.0, 0.1, 2.5, NAN, -7.0, 4.0, 1e-3]
)
Y = X.roll(3)


def _rounded(graph, x, y):
    return _chain(graph, x, (aten.mul.Tensor, 4.0), (aten.add.Tensor, 12582912.0), (aten.sub.Tensor, 12582912.0))


def _not_less(graph, x, y):
    less = graph.call_function(aten.lt.Tensor, (x, y))
    return graph.call_function(aten.logical_not.default, (less,))


def _chain(graph, value, *steps):
    for target, *numbers in steps:
        value = graph.call_function(target, (value, *numbers))
    return value


KERNELS = {
    "relu": lambda graph, x, y: _chain(graph, x, (aten.relu.default,)),
    "clamp": lambda graph, x, y: _chain(graph, x, (aten.clamp.default, -0.5, 1.0)),
    "maximum": lambda graph, x, y: _chain(graph, x, (aten.maximum.default, y), (aten.minimum.default, y)),
    "amax": lambda graph, x, y: _chain(graph, x, (aten.add.Tensor, y), (aten.amax.default, [0])),
    "difference": lambda graph, x, y: _chain(graph, x, (aten.sub.Tensor, x)),
    "inequality": lambda graph, x, y: _chain(graph, x, (aten.ne.Tensor, x)),
    "cancelled": lambda graph, x, y: _chain(graph, x, (aten.add.Tensor, y), (aten.sub.Tensor, y)),
    "rounded": _rounded,
    "not_less": _not_less,
    "log1p": lambda graph, x, y: _chain(graph, x, (aten.abs.default,), (aten.log1p.default,)),
}


def _graph(build):
    graph, mode = fx.Graph(), FakeTensorMode()
    leaves = [graph.placeholder(name) for name in ("x", "y")]
    for leaf in leaves:
        leaf.meta["val"] = mode.from_tensor(X)
    root = build(graph, *leaves)
    members = [node for node in graph.nodes if node.op == "call_function"]
    for node in members:
        propagate(node)
    return graph, Kernel(root, tuple(members[:-1]), tuple(leaves))


@pytest.fixture(scope="module")
def library(emulated_target):
    target = emulated_target()
    functions = {
        name: target.schedule(kernel_function(_graph(build)[1])).with_attr("global_symbol", name)
        for name, build in KERNELS.items()
    }
    return target.compile(tvm.IRModule(functions), lower_relax)


@pytest.mark.parametrize("name", KERNELS)
def test_emitted_kernel_agrees_with_pytorch(library, name):
    graph, kernel = _graph(KERNELS[name])
    graph.output(kernel.root)
    expected = fx.GraphModule(torch.nn.Module(), graph)(X, Y)
    device = tvm.cuda(0)
    result = tvm.runtime.tensor(torch.zeros_like(expected).numpy(), device)
    library[name](tvm.runtime.tensor(X.numpy(), device), tvm.runtime.tensor(Y.numpy(), device), result)
    actual = torch.from_numpy(result.numpy().copy())
    torch.testing.assert_close(actual, expected, rtol=3e-7 if name == "log1p" else 0, atol=0, equal_nan=True)
