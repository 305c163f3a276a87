"""The decompositions that capture runs: PyTorch's rules for compound ops, and ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._export.utils import _collect_all_valid_cia_ops, _get_decomp_for_cia
from torch.export import ExportedProgram

from fqt_deploy.capture.own_decompositions import OWN
from fqt_deploy.ops.aten.compound_ops import DECOMPOSED, KEPT

aten = torch.ops.aten


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, _: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized over each sample's groups of channels, with mean and inverse deviation [n, groups]."""
    grouped = x.reshape(n, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    y = (centred * inverse).view(x.shape)
    each = [1, channels, *[1] * (x.dim() - 2)]
    y = y if weight is None else y * weight.view(each)
    return y if bias is None else y + bias.view(each), mean.view(n, groups), inverse.view(n, groups)


def _split(x: Tensor, sizes: list[int], axis: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [aten.slice(x, axis, start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _copy(destination: Tensor, source: Tensor, _: bool = False) -> Tensor:
    return source.to(destination.dtype).expand(destination.shape).clone()


_OWN: dict[Any, Callable[..., Any]] = {
    aten.copy.default: _copy,
    aten.native_group_norm.default: _group_norm,
    aten.split_with_sizes.default: _split,
    **OWN,
}
"""Ops that PyTorch spells in what has no lowering."""


def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's rule for every op that it spells in simpler ones, and ours; a dictionary of the caller's own."""
    return dict(_rules(_compound_ops()))


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """``program`` after ``decompositions``.

    PyTorch would list its hundreds of compound ops and register each with the rule that it has anyway, which takes
    longer than tracing a small model. It is told of those alone that are kept or have another rule.
    """
    compound, rules = _listed(_compound_ops()), _rules(_compound_ops())
    usual = {op for op in compound if op in rules and _is_usual(op, rules[op])}

    def listed() -> set[Any]:
        return compound - usual

    with mock.patch("torch.export.exported_program._collect_all_valid_cia_ops", listed):
        found: ExportedProgram = program.run_decompositions({o: rule for o, rule in rules.items() if o not in usual})
    return found


def _is_usual(op: Any, rule: Any) -> bool:
    """Whether ``rule`` is what PyTorch does with the compound ``op`` wherever it is called."""
    usual = _get_decomp_for_cia(op)
    same = isinstance(usual, partial) and isinstance(rule, partial)
    return usual is rule or (
        same and (usual.func.__qualname__, usual.keywords) == (rule.func.__qualname__, rule.keywords)
    )


def _compound_ops() -> tuple[str, ...]:
    """The names of all ops that are spelled in others, those of libraries that were loaded meanwhile included."""
    return tuple(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))


@lru_cache(maxsize=1)
def _listed(_: tuple[str, ...]) -> set[Any]:
    """What PyTorch lists where there are these ops."""
    found: set[Any] = _collect_all_valid_cia_ops()
    return found


@lru_cache(maxsize=1)
def _rules(_: tuple[str, ...]) -> dict[Any, Callable[..., Any]]:
    """The rules where there are these compound ops."""
    table = {**core_aten_decompositions(), **get_decompositions(DECOMPOSED)}
    kept = {getattr(packet, overload) for packet in KEPT for overload in packet.overloads()}  # type: ignore[no-untyped-call]
    return {op: rule for op, rule in table.items() if op not in kept} | _OWN
