"""``F.ctc_loss`` for any lengths, in steps that only compute: PyTorch's own looks at lengths to size its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fqt_deploy.capture.tracing import untraceable

IMPOSSIBLE = -1e30
"""The logarithm of the probability of what cannot be: finite, since the difference of two infinities is no number."""
_INFINITE = 1e29
"""A loss from here on is that of labels that no path spells."""


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """The negative logarithm of the probability of the labels, over all paths that spell them.

    Args:
        log_probs: [frames, N, classes] float32, or without N.
        targets: [N, labels] integers; what is behind a sample's length may be anything.
        input_lengths: [N], the frames of each sample.
        target_lengths: [N], the labels of each sample.
        blank: the class that spells nothing.
        reduction: ``mean`` of each sample's loss by its labels, ``sum`` or ``none``.
        zero_infinity: samples whose labels need more frames than they have cost nothing.

    Returns:
        The loss; NaN with a label that is no class, or a length that is more than there is.

    Raises:
        FqtError: FQT104 if the labels of all samples are in one row: the places of each depend on lengths.

    Source: Graves et al., Connectionist Temporal Classification, 2006, equations 6 to 8, with logarithms.
    """
    several = log_probs.dim() == 3
    if several and targets.dim() == 1:
        raise untraceable(
            "F.ctc_loss with the labels of all samples in one row: where a sample's labels are depends on lengths",
            "give the labels as [samples, labels of the longest], padded with anything",
        )
    if not several:
        log_probs, targets = log_probs.unsqueeze(1), targets.unsqueeze(0)
    samples = log_probs.shape[1]
    frames, labels = (torch.as_tensor(lengths).reshape(samples) for lengths in (input_lengths, target_lengths))
    loss = _losses(log_probs, targets.long(), frames, labels, blank)
    if zero_infinity:
        loss = torch.where(loss == math.inf, 0.0, loss)
    if reduction == "mean":
        return (loss / labels.clamp(min=1)).mean()
    if reduction == "sum":
        return loss.sum()
    return loss if several else loss.squeeze(0)


def _losses(log_probs: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int) -> Tensor:
    """The loss of each sample, [N]."""
    (steps, _, classes), longest = log_probs.shape, targets.shape[1]
    counts = torch.arange(longest) < labels[:, None]
    spelled = torch.where(counts, targets, blank)
    blanks = torch.full_like(spelled, blank)
    # Blanks stand before, between and behind the labels: [N, places]. A label that is no class counts as another one,
    # and its loss is not used.
    states = torch.cat([torch.stack([blanks, spelled], 2).flatten(1), targets.new_full((len(targets), 1), blank)], 1)
    states = torch.remainder(states, classes)
    others = states[:, 2:] != states[:, :-2]  # none of the blanks
    may_skip = torch.cat([torch.zeros_like(states[:, :2], dtype=torch.bool), others], 1)
    emitted = log_probs.gather(2, states.expand(steps, *states.shape)).unbind(0)
    runs = (torch.arange(steps)[:, None, None] < frames[:, None]).unbind(0)
    first = torch.arange(states.shape[1]) < 2
    reached = torch.where(first, emitted[0], IMPOSSIBLE)
    for emission, run in zip(emitted[1:], runs[1:], strict=True):
        padded = F.pad(reached, (2, 0), value=IMPOSSIBLE)
        skipped = torch.where(may_skip, padded[:, :-2], IMPOSSIBLE)
        moved = _log_sum(reached, padded[:, 1:-1], skipped) + emission
        reached = torch.where(run, moved, reached)
    places = torch.arange(states.shape[1])
    ends = (torch.where(places == end[:, None], reached, IMPOSSIBLE).amax(1) for end in (2 * labels, 2 * labels - 1))
    loss = torch.where(frames > 0, -_log_sum(*ends), torch.where(labels > 0, -IMPOSSIBLE, 0.0))
    loss = torch.where(loss > _INFINITE, math.inf, loss + _as_of_softmax(log_probs, frames))
    known = (~counts | ((targets >= 0) & (targets < classes))).all(1)
    fits = (frames >= 0) & (frames <= steps) & (labels >= 0) & (labels <= longest)
    return torch.where(known & fits, loss, math.nan)


def _log_sum(*values: Tensor) -> Tensor:
    """The logarithm of the sum of what ``values`` are logarithms of."""
    largest = values[0]
    for value in values[1:]:
        largest = torch.maximum(largest, value)
    largest = largest.detach()  # any number would do
    return largest + torch.log(sum((value - largest).exp() for value in values))  # type: ignore[arg-type]


def _as_of_softmax(log_probs: Tensor, frames: Tensor) -> Tensor:
    """Zeros, [N], with the gradient that PyTorch adds: it takes ``log_probs`` for those of a softmax."""
    probabilities = log_probs.exp().sum(2)
    runs = torch.arange(log_probs.shape[0])[:, None] < frames
    return torch.where(runs, probabilities - probabilities.detach(), 0.0).sum(0)
