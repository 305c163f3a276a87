"""``F.embedding_bag`` as lookups and a sum: PyTorch's own kernel has no lowering, and takes all samples for one row."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fqt_deploy.capture.tracing import untraceable


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the vectors of each row's tokens.

    Args:
        input: [N, tokens] integers, or [tokens of all bags].
        weight: [vectors, elements] float32.
        offsets: [N] integers, where bags begin in the one row of all tokens.
        max_norm: what vectors are shortened to before they are read; not supported.
        norm_type: the norm for it.
        scale_grad_by_freq: gradients are divided by how often a token occurs; not supported.
        mode: ``sum``, ``mean`` or ``max``.
        sparse: makes no difference: a compiled step adds to the rows that were read.
        per_sample_weights: [N, tokens] float32, factors for ``sum``.
        include_last_offset: the last offset is the end of the last bag.
        padding_idx: the token that does not count; a bag of it alone is 0.

    Raises:
        FqtError: FQT104 for what is not supported.
    """
    refused = {
        "the maximum of tokens in one row": offsets is not None and mode == "max",
        "max_norm": max_norm is not None,
        "scale_grad_by_freq": scale_grad_by_freq,
    }
    for what, given in refused.items():
        if given:
            raise untraceable(
                f"F.embedding_bag with {what} is not supported",
                "give tokens as [samples, tokens], padded with padding_idx, and leave other options out",
            )
    wanted = 2 if offsets is None else 1
    if input.dim() != wanted or mode not in _MODES or (per_sample_weights is not None and mode != "sum"):
        # which says why not
        return F.embedding_bag(input, weight, offsets, mode=mode, per_sample_weights=per_sample_weights)
    vectors = F.embedding(input, weight)
    counts = None if padding_idx is None else (input != padding_idx % weight.shape[0]).unsqueeze(-1)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    if offsets is None:
        return _MODES[mode](vectors, counts)  # type: ignore[no-any-return]
    return _of_one_row(vectors, counts, offsets[:-1] if include_last_offset else offsets, mode)


def torch_embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, None, None, None]:
    """``torch.embedding_bag``, which has numbers for the modes; what it returns beside the bags is not there.

    Raises:
        FqtError: FQT104 for what is not supported.
    """
    bags = embedding_bag(
        indices, weight, offsets, scale_grad_by_freq=scale_grad_by_freq, mode=("sum", "mean", "max")[mode],
        per_sample_weights=per_sample_weights, include_last_offset=include_last_offset, padding_idx=padding_idx,
    )  # fmt: skip
    return bags, None, None, None


def _of_one_row(vectors: Tensor, counts: Tensor | None, starts: Tensor, mode: str) -> Tensor:
    """Sums or means of vectors [tokens, elements]; each bag [N, elements] begins at its start and ends at the next.

    The first begins at token 0: else all are NaN, where PyTorch raises an error.
    """
    positions = torch.arange(len(vectors), device=vectors.device)
    bag = ((positions.unsqueeze(1) >= starts).sum(1) - 1).clamp(min=0)
    kept = vectors if counts is None else torch.where(counts, vectors, 0.0)
    sums = kept.new_zeros(len(starts), vectors.shape[1]).index_add(0, bag, kept)
    sums = torch.where(starts[:1] == 0, sums, math.nan)
    if mode == "sum":
        return sums
    ones = torch.ones_like(vectors[:, :1]) if counts is None else counts.float()
    return sums / ones.new_zeros(len(starts), 1).index_add(0, bag, ones).clamp(min=1)


def _sum(vectors: Tensor, counts: Tensor | None) -> Tensor:
    return (vectors if counts is None else torch.where(counts, vectors, 0.0)).sum(1)


def _mean(vectors: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return vectors.mean(1)
    return _sum(vectors, counts) / counts.float().sum(1).clamp(min=1)


def _largest(vectors: Tensor, counts: Tensor | None) -> Tensor:
    if counts is None:
        return vectors.max(1).values
    largest = torch.where(counts, vectors, -math.inf).max(1).values
    return torch.where(counts.any(1), largest, 0.0)


_MODES: dict[str, Any] = {"sum": _sum, "mean": _mean, "max": _largest}
