"""NaN, infinities, zeros and denormals: kernels of one op, and of many as one, compute what PyTorch computes."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import tvm
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.codegen.kernel_function import kernel_function
from fqt_deploy.codegen.kernel_grouping import Kernel
from fqt_deploy.core.graph import propagate
from fqt_deploy.targets.registry import make_target

aten = torch.ops.aten
SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 1e-8, -1e-8, 0.1, 3e38, -3e38, 16777216.0, 2.5]
)
"""[16] float32: one vector."""
PAIRS = SPECIAL.repeat(16), SPECIAL.repeat_interleave(16)
"""[256] float32 each: every pair of special values."""


def compile_kernel(build, target=None):
    """A function of as many tensors as ``build`` has arguments: the graph that it makes of placeholders as one kernel.

    Args:
        build: ``(graph, *placeholders) -> node``; must not use a placeholder's value.
        target: by default this machine.
    """
    target = target or make_target("cpu")

    def compiled(*operands):
        graph, mode = fx.Graph(), FakeTensorMode()
        leaves = [graph.placeholder(f"operand{i}") for i in range(len(operands))]
        for leaf, operand in zip(leaves, operands, strict=True):
            leaf.meta["val"] = mode.from_tensor(operand)
        root = build(graph, *leaves)
        members = []
        for node in graph.nodes:
            if node.op == "call_function":
                propagate(node)
                members.append(node)
        function = target.schedule(kernel_function(Kernel(root, tuple(members[:-1]), tuple(leaves))))
        module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
        expected = root.meta["val"]
        result = tvm.runtime.empty(list(expected.shape), str(expected.dtype).removeprefix("torch."))
        tvm.compile(module, target.tvm_target)["main"](*[tvm.runtime.tensor(o.numpy()) for o in operands], result)
        return torch.from_numpy(result.numpy().copy())

    return compiled


def call(target, *args, **kwargs):
    return lambda graph, *leaves: graph.call_function(target, tuple(args) if args else leaves, kwargs)


UNARY = {
    "relu": (aten.relu.default, ()), "neg": (aten.neg.default, ()), "abs": (aten.abs.default, ()),
    "sign": (aten.sign.default, ()), "reciprocal": (aten.reciprocal.default, ()),
    "clamp": (aten.clamp.default, (-0.5, 1.0)), "clamp_crossed": (aten.clamp.default, (1.0, -0.5)),
    "clamp_zero": (aten.clamp.default, (0.0, None)), "clamp_nan": (aten.clamp.default, (math.nan, 1.0)),
    "clamp_min": (aten.clamp_min.default, (0.0,)), "clamp_max": (aten.clamp_max.default, (0.0,)),
    "isnan": (aten.isnan.default, ()), "add_zero": (aten.add.Tensor, (0.0,)), "times_zero": (aten.mul.Tensor, (0.0,)),
    "over_zero": (aten.div.Tensor, (0.0,)), "square": (aten.pow.Tensor_Scalar, (2,)),
    "zeroth": (aten.pow.Tensor_Scalar, (0,)), "less_inf": (aten.lt.Scalar, (math.inf,)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_one_operand(name):
    target, numbers = UNARY[name]
    actual = compile_kernel(lambda graph, x: graph.call_function(target, (x, *numbers)))(SPECIAL)
    torch.testing.assert_close(actual, target(SPECIAL, *numbers), rtol=0, atol=0, equal_nan=True)


ACCURATE = {
    "log1p": (aten.log1p.default, 3e-7), "expm1": (aten.expm1.default, 4e-7), "exp": (aten.exp.default, 3e-7),
    "log": (aten.log.default, 3e-7),
    "sqrt": (aten.sqrt.default, 1.2e-7), "rsqrt": (aten.rsqrt.default, 3e-7),
    "sigmoid": (aten.sigmoid.default, 4e-7),
}  # fmt: skip


@pytest.mark.parametrize("name", ACCURATE)
def test_relative_error(name):
    """In every binade of both signs, and at special values."""
    target, bound = ACCURATE[name]
    values = np.geomspace(1e-30, 3e38, 4096 - 16, dtype="float64").astype("float32")
    x = torch.cat([torch.from_numpy(values), -torch.from_numpy(values), SPECIAL, SPECIAL])
    expected = target(x.double()).float()
    actual = compile_kernel(lambda graph, x: graph.call_function(target, (x,)))(x)
    normal = ~(expected.abs() < 1.2e-38)
    torch.testing.assert_close(actual[normal], expected[normal], rtol=bound, atol=0, equal_nan=True)
    torch.testing.assert_close(actual, expected, rtol=bound, atol=1.2e-38, equal_nan=True)


BINARY = [
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
    aten.lt.Tensor, aten.le.Tensor, aten.gt.Tensor, aten.ge.Tensor, aten.eq.Tensor, aten.ne.Tensor,
]  # fmt: skip


@pytest.mark.parametrize("target", BINARY, ids=str)
def test_two_operands(target):
    actual = compile_kernel(call(target))(*PAIRS)
    torch.testing.assert_close(actual, target(*PAIRS), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", [aten.sub.Tensor, aten.div.Tensor, aten.eq.Tensor, aten.ne.Tensor], ids=str)
def test_an_operand_and_itself(target):
    actual = compile_kernel(lambda graph, x: graph.call_function(target, (x, x)))(SPECIAL)
    torch.testing.assert_close(actual, target(SPECIAL, SPECIAL), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", [aten.amax.default, aten.amin.default], ids=str)
@pytest.mark.parametrize("axes", [[0], [1], [0, 1]])
def test_reductions(target, axes):
    for x in (
        torch.stack([p.view(16, 16) for p in PAIRS]).flatten(0, 1),
        torch.where(SPECIAL.isnan(), 7, SPECIAL).repeat(2, 3),
    ):
        actual = compile_kernel(lambda graph, x: graph.call_function(target, (x, axes)))(x)
        torch.testing.assert_close(actual, target(x, axes), rtol=0, atol=0, equal_nan=True)


IDIOMS = {
    "rounding": lambda x: (x * 4 + 12582912.0) - 12582912.0,
    "cancelled": lambda x: (x + 1.0) - x,
    "own_difference": lambda x: (x + 1.0) - (1.0 + x),
    "is_nan": lambda x: torch.where(x * 2.0 != x * 2.0, torch.zeros_like(x), x),
    "not_less": lambda x: torch.logical_not(x + 1.0 < x * 2.0),
    "less_or_not": lambda x: torch.logical_or(x + 0.0 <= x * 2.0, x * 2.0 < x + 0.0),
    "nested_choice": lambda x: torch.where(x < 0, x, torch.where(x >= 0, x * 3.0, torch.ones_like(x))),
    "two_products": lambda x: x * x - x * x,
    "multiply_add": lambda x: x * 0.1 + x,
    "halved_and_added": lambda x: x / 2.0 + x,
    "error_of_a_product": lambda x: x * 0.1 - (x * 0.1 + 0.3 - 0.3),
    "log1p": lambda x: torch.where(1.0 + x == 1.0, x, torch.log(1.0 + x) * x / ((1.0 + x) - 1.0)),
    "kahan": lambda x: ((x + 1e-8) - x) - 1e-8,
    "relu_of_relu": lambda x: torch.relu(torch.relu(x) - 1.0),
    "plus_zero": lambda x: 1.0 / ((x * 0.0) + 0.0),
}  # fmt: skip


def traced(function, *operands):
    """``function`` as aten calls of one graph: what ``compile_kernel`` takes."""
    nodes = list(make_fx(function)(*operands).graph.nodes)

    def build(graph, *leaves):
        values = dict(zip([n for n in nodes if n.op == "placeholder"], leaves, strict=True))
        for node in nodes:
            if node.op == "call_function":
                values[node] = graph.node_copy(node, values.__getitem__)
        return values[nodes[-1].args[0]]

    return build


@pytest.mark.parametrize("name", IDIOMS)
def test_one_kernel_rounds_every_operation(name):
    x = torch.cat([SPECIAL, torch.randn(48, generator=torch.Generator().manual_seed(0))])
    actual = compile_kernel(traced(IDIOMS[name], x))(x)
    rtol = 1e-6 if name == "log1p" else 0
    torch.testing.assert_close(actual, IDIOMS[name](x), rtol=rtol, atol=0, equal_nan=True)


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 0.1, 3.0, 1e-8, 12582912.0, 1e30, math.inf])
OPERATIONS = {
    "+": torch.add, "-": torch.sub, "*": torch.mul, "/": torch.div, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip
COMPARISONS = [torch.lt, torch.le, torch.gt, torch.ge, torch.eq, torch.ne]


@st.composite
def expressions(draw):
    """A function of two tensors: up to ten operations, each on two earlier values or a number."""
    steps = [
        (draw(st.sampled_from([*OPERATIONS, "relu", "clamp", "neg", "where"])), draw(st.integers(0, 99)),
         draw(st.integers(0, 99)), draw(st.one_of(st.none(), NUMBERS)), draw(st.sampled_from(COMPARISONS)),
         draw(st.booleans()))
        for _ in range(draw(st.integers(2, 10)))
    ]  # fmt: skip

    def function(x, y):
        values = [x, y]
        for operation, i, j, number, compare, inverted in steps:
            a, b = values[-1 - i % min(3, len(values))], values[j % len(values)]
            if operation in OPERATIONS:
                scalar = number is not None and operation not in ("max", "min")
                values.append(OPERATIONS[operation](a, number if scalar else b))
            elif operation == "where":
                mask = compare(a, b)
                values.append(torch.where(torch.logical_not(mask) if inverted else mask, a, b))
            else:
                unary = {"relu": torch.relu, "neg": torch.neg, "clamp": lambda v: torch.clamp(v, -1.0, 1e8)}
                values.append(unary[operation](a))
        return values[-1]

    return function


@pytest.mark.thorough
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(expressions())
def test_random_expressions(function):
    """Bit for bit but for the sign of zeros, which PyTorch's own maxima do not define."""
    noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    x, y = (torch.cat([special, values]) for special, values in zip(PAIRS, noise, strict=True))
    expected = function(x, y)
    actual = compile_kernel(traced(function, x, y))(x, y)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
