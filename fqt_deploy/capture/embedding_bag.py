"""``F.embedding_bag`` of rows of tokens as lookups and a sum: PyTorch's own kernel takes all samples for one row."""

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
        input: [N, tokens] integers.
        weight: [vectors, elements] float32.
        offsets: where bags begin in a row of all tokens; not supported.
        max_norm: what vectors are shortened to before they are read; not supported.
        norm_type: the norm for it.
        scale_grad_by_freq: gradients are divided by how often a token occurs; not supported.
        mode: ``sum``, ``mean`` or ``max``.
        sparse: makes no difference: a compiled step adds to the rows that were read.
        per_sample_weights: [N, tokens] float32, factors for ``sum``.
        include_last_offset: the last offset is the end.
        padding_idx: the token that does not count; a bag of it alone is 0.

    Raises:
        FqtError: FQT104 for what is not supported.
    """
    refused = {
        "tokens in one row with offsets": offsets is not None,
        "max_norm": max_norm is not None,
        "scale_grad_by_freq": scale_grad_by_freq,
    }
    for what, given in refused.items():
        if given:
            raise untraceable(
                f"F.embedding_bag with {what} is not supported",
                "give tokens as [samples, tokens], padded with padding_idx, and leave other options out",
            )
    if input.dim() != 2 or mode not in _MODES or (per_sample_weights is not None and mode != "sum"):
        return F.embedding_bag(input, weight, mode=mode, per_sample_weights=per_sample_weights)  # which says why not
    vectors = F.embedding(input, weight)
    counts = None if padding_idx is None else (input != padding_idx % weight.shape[0]).unsqueeze(2)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(2)
    return _MODES[mode](vectors, counts)  # type: ignore[no-any-return]


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
