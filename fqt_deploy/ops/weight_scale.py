"""``fqt::weight_scale``: mean magnitude of each output channel's weight (XNOR-Net)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(w: Tensor) -> Tensor:
    """``alpha[o] = mean |w[o]|`` (algorithm, section 2).

    Args:
        w: [O, I, KH, KW] float32.

    Returns:
        [O] float32.
    """
    return w.abs().flatten(1).mean(1)


def fake(w: Tensor) -> Tensor:
    """Shape rule: [O, ...] -> [O]."""
    return w.new_empty(w.shape[0])


def compute(w: te.Tensor) -> te.Tensor:
    """A sum, divided."""
    o, *rest = (int(d) for d in w.shape)
    axes = [te.reduce_axis((0, e)) for e in rest]
    total = te.compute((o,), lambda c: te.sum(tirx.abs(w[(c, *axes)]), axis=axes), name="weight_scale_total")
    return te.compute((o,), lambda c: total[c] / float(math.prod(rest)), name="weight_scale")


def cost(w: Tensor) -> Cost:
    """Two operations an element."""
    return Cost(flops=2 * w.numel(), bytes_moved=tensor_bytes(w))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Convolution and linear layer."""
    g = torch.Generator().manual_seed(0)
    yield (torch.randn(16, 32, 3, 3, generator=g),)
    yield (torch.randn(7, 33, 1, 1, generator=g),)


weight_scale = OpSpec("weight_scale", OpKind.ROOT, reference, fake, compute, cost, sample_inputs).register()
