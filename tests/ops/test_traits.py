"""What definitions say of ops is true on their samples: samples gather, zeros stay zero, permutations commute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.call import bind, call_of
from fqt_deploy.core.graph import propagate
from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.ops.op import FQT_OPS, OPS, Op
from fqt_deploy.ops.traits import Layout, Leads, broadcast, created, no_samples, scattered

CALLS = [
    *[(op, args, {}) for op in FQT_OPS.values() for args in op.sample_inputs()],
    *[(op, *call) for op in aten_ops().values() for call in op.samples],
]


def cases(*, when: Any) -> list[Any]:
    return [
        pytest.param(op, args, kwargs, id=f"{op.target}-{i}")
        for i, (op, args, kwargs) in enumerate(CALLS)
        if when(op, bind(op.target, args, kwargs))
    ]


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, (tuple, list)) else result


def run(op: type[Op], values: dict[str, Any]) -> Tensor:
    names = [argument.name for argument in op.target._schema.arguments if not argument.kwarg_only]
    keywords = {name: value for name, value in values.items() if name not in names}
    return first(op.target(*[values[name] for name in names], **keywords))


def tensors(values: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def node_of(op: type[Op], args: Any, kwargs: Any) -> tuple[fx.Node, list[fx.Node]]:
    """The call on placeholders, with shapes."""
    graph, mode, placeholders = fx.Graph(), FakeTensorMode(), []

    def placeholder(value: Any) -> Any:
        if isinstance(value, list):
            return [placeholder(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        placeholders.append(graph.placeholder(f"x{len(placeholders)}"))
        placeholders[-1].meta["val"] = mode.from_tensor(value.contiguous())
        return placeholders[-1]

    node = graph.call_function(op.target, tuple(placeholder(a) for a in args), kwargs)
    propagate(node)
    return node, placeholders


def leads(op: type[Op], values: dict[str, Any]) -> bool:
    """Batch normalization is left out: its samples are the leading axis, but statistics join them."""
    return isinstance(op.traits.batch, Leads) and op.name not in ("batch_norm", "batch_norm_backward")


@pytest.mark.parametrize(("op", "args", "kwargs"), cases(when=leads))
def test_rows_of_the_leading_axis_are_independent(op: type[Op], args: Any, kwargs: Any) -> None:
    """A sample's result is that of the sample alone: gathering rows of the operands gathers rows of the result."""
    values = bind(op.target, args, kwargs)
    led = [name for name in op.traits.batch.operands if values[name] is not None]  # type: ignore[attr-defined]
    whole = run(op, values)
    count = values[led[0]].shape[0]
    multiple = whole.shape[0] // count
    for row in {0, count - 1}:
        one = run(op, {**values, **{name: values[name][row : row + 1].clone() for name in led}})
        torch.testing.assert_close(one, whole[row * multiple : (row + 1) * multiple])


@pytest.mark.parametrize(
    ("op", "args", "kwargs"),
    cases(
        when=lambda op, values: (
            op.traits.batch not in (no_samples, scattered, created) and not isinstance(op.traits.batch, Leads)
        )
    ),
)
def test_the_axis_of_the_samples_is_followed(op: type[Op], args: Any, kwargs: Any) -> None:
    """Gathering an operand along its axis gathers the result along the axis that the rule gives."""
    node, placeholders = node_of(op, args, kwargs)
    operands = iter(t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, Tensor))
    real = dict(zip(placeholders, operands, strict=True))
    whole = first(op.target(*args, **kwargs))
    sizes = [int(d) for d in real[placeholders[0]].shape]
    for axis, extent in enumerate(sizes):
        axes = {p: axis - len(sizes) + real[p].dim() for p in placeholders}  # aligned from the right, as broadcast
        if op.name == "select_scatter" and axis < args[2] % len(sizes):
            axes[placeholders[1]] = axis  # the axis that the second operand lacks lies behind
        led = {p: a for p, a in axes.items() if a >= 0 and real[p].shape[a] == extent}
        found = op.traits.batch(call_of(node), led.get, extent)
        if found is None or extent < 2:
            continue

        def gathered(value: Any, led: dict[fx.Node, int] = led) -> Tensor:
            return real[value].index_select(led[value], torch.tensor([1, 0])) if value in led else real[value]

        swapped_args, swapped_kwargs = fx.map_arg((node.args, node.kwargs), gathered)
        for name in ("size",):  # shapes in arguments name the whole batch
            names = [argument.name for argument in op.target._schema.arguments]
            if name in names[: len(swapped_args)]:
                position = names.index(name)
                shape = list(swapped_args[position])
                shape[found] = shape[found] // extent * 2
                swapped_args = (*swapped_args[:position], shape, *swapped_args[position + 1 :])
        swapped = first(op.target(*swapped_args, **swapped_kwargs))
        rows = whole.unflatten(found, (extent, -1)).index_select(found, torch.tensor([1, 0])).flatten(found, found + 1)
        torch.testing.assert_close(swapped, rows)


@pytest.mark.parametrize(("op", "args", "kwargs"), cases(when=lambda op, values: op.traits.zero.operands))
def test_zero_in_gives_zero_out(op: type[Op], args: Any, kwargs: Any) -> None:
    values = bind(op.target, args, kwargs)
    zero = op.traits.zero
    groups = [[name] for name in zero.operands] if zero.enough else [list(zero.operands)]
    for group in groups:
        if not all(isinstance(values[name], (Tensor, int, float)) for name in group):
            continue
        zeroed = {n: torch.zeros_like(values[n]) if isinstance(values[n], Tensor) else 0 for n in group}
        assert not run(op, {**values, **zeroed}).any(), group


@pytest.mark.parametrize(
    ("op", "args", "kwargs"), cases(when=lambda op, values: op.traits.layout is Layout.ELEMENTWISE)
)
def test_permuting_all_operands_permutes_the_result(op: type[Op], args: Any, kwargs: Any) -> None:
    values = bind(op.target, args, kwargs)
    rank = max(t.dim() for t in tensors(values).values())
    aligned = {n: t.reshape([1] * (rank - t.dim()) + list(t.shape)) for n, t in tensors(values).items()}
    order = list(reversed(range(rank)))
    permuted = {name: tensor.permute(order).contiguous() for name, tensor in aligned.items()}
    torch.testing.assert_close(run(op, {**values, **permuted}), run(op, {**values, **aligned}).permute(order))


def test_every_op_has_traits() -> None:
    assert all(op.traits for op in OPS.values())
    assert all(op.traits.batch is broadcast for op in OPS.values() if op.traits.layout is Layout.ELEMENTWISE
               and op.target not in {cls.target for cls in FQT_OPS.values()})  # fmt: skip
