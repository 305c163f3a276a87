"""The decompositions that capture runs: PyTorch's rules for compound ops, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

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
    """PyTorch's rule for every op that it spells in simpler ones, and ours."""
    table = {**core_aten_decompositions(), **get_decompositions(DECOMPOSED)}
    kept = {getattr(packet, overload) for packet in KEPT for overload in packet.overloads()}  # type: ignore[no-untyped-call]
    return {op: rule for op, rule in table.items() if op not in kept} | _OWN
