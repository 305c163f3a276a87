"""The values that the state starts from where a text has none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

DEVIATION = 0.1


def filler(name: str, role: str, extents: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that is a function of its name, role and type alone.

    Parameters are normal with deviation 0.1, floating point buffers uniform in [0.5, 1.5), for a variance must be
    positive. Optimizer state, counters and whatever is not floating point are 0.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if role == "param" and dtype.is_floating_point:
        return (torch.randn(extents, generator=generator) * DEVIATION).to(dtype)
    if role == "buffer" and dtype.is_floating_point:
        return (torch.rand(extents, generator=generator) + 0.5).to(dtype)
    return torch.zeros(extents, dtype=dtype)
