"""A convolution for references that does not use oneDNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def without_onednn() -> Iterator[None]:
    """PyTorch's own kernels in the place of oneDNN's, for the reason that ``plain_convolution`` gives."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def plain_convolution(x: Tensor, w: Tensor, stride: list[int], padding: list[int]) -> Tensor:
    """PyTorch's own kernel, an unfolding and a matrix product.

    oneDNN, which ``torch.nn.functional.conv2d`` calls, is wrong on processors with AVX-512 for one input channel,
    stride 2 and a single output column (PyTorch 2.13, ``brg_conv_fwd``), and a reference must not be.

    Args:
        x: [N, I, H, W] float32.
        w: [O, I, KH, KW] float32.
        stride: vertical and horizontal.
        padding: zeros above and below, left and right.

    Returns:
        [N, O, OH, OW] float32.
    """
    y: Tensor = torch.ops.aten.thnn_conv2d(x, w, list(w.shape[2:]), None, stride, padding)
    return y
