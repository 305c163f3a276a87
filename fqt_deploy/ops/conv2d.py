"""``fqt::conv2d``: convolution in fp32, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.convolution_shape import input_position, output_extents
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Cross-correlation with zero padding.

    Args:
        x: [N, H, W, I] float32.
        w: [O, I, KH, KW] float32.
        stride: vertical and horizontal.
        padding: zeros on each side.

    Returns:
        [N, OH, OW, O] float32.
    """
    return F.conv2d(x.permute(0, 3, 1, 2), w, None, stride, padding).permute(0, 2, 3, 1).contiguous()


def fake(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """Shape rule of ``reference``."""
    if x.shape[3] != w.shape[1]:
        raise ValueError(f"an image of {x.shape[3]} channels for a weight of {w.shape[1]}")
    hw = output_extents(list(x.shape[1:3]), list(w.shape[2:]), stride, padding)
    return x.new_empty((x.shape[0], *hw, w.shape[0]))


def compute(x: te.Tensor, w: te.Tensor, stride: list[int], padding: list[int]) -> te.Tensor:
    """Direct convolution."""
    n, h, width, i = (int(d) for d in x.shape)
    o, _, *kernel = (int(d) for d in w.shape)
    hw = output_extents([h, width], kernel, stride, padding)
    kh, kw, c = (te.reduce_axis((0, e), a) for e, a in zip((*kernel, i), ("kh", "kw", "c"), strict=True))

    def term(b: Any, y: Any, z: Any, out: Any) -> Any:
        inside, at_h, at_w = input_position(y, z, kh, kw, [h, width], stride, padding)
        return te.sum(tirx.if_then_else(inside, x[b, at_h, at_w, c] * w[out, c, kh, kw], 0.0), axis=[kh, kw, c])

    return te.compute((n, *hw, o), term, name="conv2d")


def cost(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Cost:
    """Two operations a multiply-accumulate."""
    y = fake(x, w, stride, padding)
    return Cost(flops=2 * y.numel() * w[0].numel(), bytes_moved=tensor_bytes(x, w, y))


CASES = (
    (2, 6, 5, 8, 32, [3, 3], [1, 1], [1, 1]),
    (3, 7, 7, 3, 17, [3, 3], [2, 2], [1, 1]),
    (1, 4, 4, 16, 16, [1, 1], [2, 2], [0, 0]),
    (2, 9, 8, 5, 20, [5, 3], [1, 2], [2, 1]),
)
"""N, H, W, I, O, kernel, stride, padding: padding, stride, odd channels, a kernel that is not square."""


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """``CASES``."""
    g = torch.Generator().manual_seed(0)
    for n, h, w, i, o, kernel, stride, padding in CASES:
        yield torch.randn(n, h, w, i, generator=g), torch.randn(o, i, *kernel, generator=g), stride, padding


conv2d = OpSpec("conv2d", OpKind.PRODUCT, reference, fake, compute, cost, sample_inputs, tolerance=1e-4).register()
