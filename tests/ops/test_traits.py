"""What definitions say of ops is true on their samples: zeros stay zero, permutations commute.

That samples gather is in ``test_samples_of_ops.py``.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.call import bind
from fqt_deploy.ops.aten.aten_op import aten, aten_ops
from fqt_deploy.ops.op import FQT_OPS, OPS, Op
from fqt_deploy.ops.traits import ANY_SIGN, Layout, Nan, broadcast

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


def floats(values: dict[str, Any]) -> list[str]:
    return [name for name, value in tensors(values).items() if value.is_floating_point()]


def not_negative(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.dtype == torch.bool or not (value < 0).any()
    return not isinstance(value, (int, float)) or value >= 0


def without_negatives(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [without_negatives(v) for v in value]
    return value.abs() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize(("op", "args", "kwargs"), cases(when=lambda op, values: op.traits.sign is not ANY_SIGN))
@pytest.mark.parametrize("change", [lambda value: value, without_negatives], ids=["as it is", "nothing negative"])
def test_nothing_negative_in_gives_nothing_negative_out(op: type[Op], args: Any, kwargs: Any, change: Any) -> None:
    values = {name: change(value) for name, value in bind(op.target, args, kwargs).items()}
    if op.traits.sign.not_negative(cast(Any, SimpleNamespace(**values)), not_negative):
        assert not (run(op, values) < 0).any()


@pytest.mark.parametrize(("op", "args", "kwargs"), cases(when=lambda op, values: op.traits.sign.same_as is not None))
def test_the_result_is_positive_where_the_operand_is(op: type[Op], args: Any, kwargs: Any) -> None:
    values = bind(op.target, args, kwargs)
    assert torch.equal(run(op, values) > 0, values[op.traits.sign.same_as] > 0)


@pytest.mark.parametrize(
    ("op", "args", "kwargs"), cases(when=lambda op, values: op.traits.nan is Nan.KEPT and floats(values))
)
def test_nan_in_gives_nan_out(op: type[Op], args: Any, kwargs: Any) -> None:
    values = bind(op.target, args, kwargs)
    for name in floats(values):
        shown = run(op, values | {name: torch.full_like(values[name], math.nan)})
        if not shown.is_floating_point():
            continue
        low, high = (run(op, values | {name: torch.full_like(values[name], number)}) for number in (-7e3, 7e3))
        depends = torch.ones_like(shown) if op.traits.layout is Layout.ELEMENTWISE else low != high
        assert shown[depends.bool()].isnan().all(), name


def test_bounds_and_constants_below_zero_are_seen() -> None:
    def tells(target: Any, *args: Any, **kwargs: Any) -> bool:
        call = cast(Any, SimpleNamespace(**bind(target, args, kwargs)))
        return bool(OPS[target].traits.sign.not_negative(call, not_negative))

    x = torch.tensor([1.0, 2.0])
    assert tells(aten.full.default, [2], 1.0)
    assert not tells(aten.full.default, [2], -1.0)
    assert not tells(aten.scatter.value, x, 0, torch.tensor([0]), -1.0)
    assert tells(aten.clamp.default, -x, 0.0, 6.0)
    assert not tells(aten.clamp.default, x, 0.0, -1.0)
    assert not tells(aten.add.Tensor, x, x, alpha=-1)
    assert tells(aten.pow.Tensor_Scalar, -x, 2)


def test_every_op_has_traits() -> None:
    assert all(op.traits for op in OPS.values())
    assert all(op.traits.batch is broadcast for op in OPS.values() if op.traits.layout is Layout.ELEMENTWISE
               and op.target not in {cls.target for cls in FQT_OPS.values()})  # fmt: skip
