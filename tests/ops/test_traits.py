"""What definitions say of ops is true on their samples: zeros stay zero, permutations commute.

That samples gather is in ``test_samples_of_ops.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.call import bind
from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.ops.op import FQT_OPS, OPS, Op
from fqt_deploy.ops.traits import Layout, broadcast

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


def test_every_op_has_traits() -> None:
    assert all(op.traits for op in OPS.values())
    assert all(op.traits.batch is broadcast for op in OPS.values() if op.traits.layout is Layout.ELEMENTWISE
               and op.target not in {cls.target for cls in FQT_OPS.values()})  # fmt: skip
