"""``fqt::weight_scale``: magnitude of a binarized weight, one scale an output channel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(w: Tensor) -> Tensor:
    """Mean absolute value of each output channel.

    Args:
        w: [O, I, KH, KW] float32.

    Returns:
        [O] float32.
    """
    return w.abs().mean([1, 2, 3])


def fake(w: Tensor) -> Tensor:
    """Shape rule: [O, I, KH, KW] -> [O]."""
    if w.dim() != 4:
        raise ValueError(f"a weight {tuple(w.shape)} has not four axes")
    return w.new_empty((w.shape[0],))


def compute(w: te.Tensor) -> te.Tensor:
    """A sum, then a division."""
    out_channels, *rest = (int(d) for d in w.shape)
    axes = [te.reduce_axis((0, extent), axis) for extent, axis in zip(rest, ("i", "kh", "kw"), strict=True)]
    total = te.compute((out_channels,), lambda o: te.sum(tirx.abs(w[(o, *axes)]), axis=axes), name="weight_scale_sum")
    count = tirx.const(float(math.prod(rest)), "float32")
    return te.compute(total.shape, lambda o: total[o] / count, name="weight_scale")


def cost(w: Tensor) -> Cost:
    """One addition an element."""
    return Cost(flops=w.numel(), bytes_moved=tensor_bytes(w, fake(w)))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Convolutions, a linear layer, zeros."""
    g = torch.Generator().manual_seed(0)
    yield (torch.randn(16, 32, 3, 3, generator=g),)
    yield (torch.randn(7, 5, 3, 1, generator=g),)
    yield (torch.randn(10, 64, 1, 1, generator=g),)
    yield (torch.zeros(3, 2, 1, 1),)


def onnx_body(op: Body, w: str) -> str:
    """A mean of magnitudes."""
    return op("ReduceMean", op("Abs", w), op.constant([1, 2, 3], "int64"), keepdims=0)


weight_scale = OpSpec(
    "weight_scale", OpKind.ROOT, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
