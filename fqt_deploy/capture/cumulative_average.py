"""Batch normalization without a momentum, traced: its running statistics are the mean over all batches so far.

PyTorch reads the number of batches as a Python number, ``1.0 / float(self.num_batches_tracked)``, which a trace takes
as a constant or refuses. Within ``cumulative_averages`` it stays a tensor:

    %count = %num_batches_tracked + 1
    %mean, %var = the statistics of the batch                             # what a momentum of 1 leaves behind
    %running_mean = %running_mean + (%mean - %running_mean) / %count
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def cumulative_averages() -> Iterator[None]:
    """Within this context batch normalization without a momentum counts its batches in tensors."""
    original: Callable[..., Tensor] = _BatchNorm.forward

    def forward(self: Any, x: Tensor) -> Tensor:
        moves = self.training and self.track_running_stats and self.num_batches_tracked is not None
        return _averaged(self, x) if moves and self.momentum is None else original(self, x)

    _BatchNorm.forward = forward  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        _BatchNorm.forward = original  # type: ignore[method-assign]


def _averaged(norm: Any, x: Tensor) -> Tensor:
    """The result of ``norm`` for ``x`` ``[batch, channels, ...]``; its buffers move."""
    norm._check_input_dim(x)
    norm.num_batches_tracked.add_(1)
    mean, variance = torch.zeros_like(norm.running_mean), torch.zeros_like(norm.running_var)
    y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, 1.0, norm.eps)
    with torch.no_grad():
        count = norm.num_batches_tracked.to(mean.dtype)
        norm.running_mean.add_((mean - norm.running_mean) / count)
        norm.running_var.add_((variance - norm.running_var) / count)
    return y
