"""Small tensors that samples of ATen ops are made of."""

from __future__ import annotations

from typing import Any

import torch

MIXED = torch.tensor([[0.5, -1.25, 2.0], [3.0, 0.0, -0.75]])
"""[2, 3] float32 of both signs, with a zero."""
ROW = torch.tensor([1.5, -1.25, 0.25])
"""[3] float32, to be broadcast."""
POSITIVE = MIXED.abs() + 0.5
"""[2, 3] float32, away from zero."""
MASK = MIXED > 0
"""[2, 3] bool."""
BYTES = torch.tensor([[12, 10, 7]], dtype=torch.int32)
"""[1, 3] int32."""
PLACES = torch.tensor([[0, 2], [1, 1]])
"""[2, 2] int64, positions along an axis of three."""
WIDE = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0))
"""[4, 6, 32] float32: rows that fill whole vectors."""
SMALL = torch.tensor([1e-6, -1e-7, 0.0, 0.4, -0.5, 80.0, -80.0])
"""[7] float32: where cancellation and overflow matter."""


def call(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one sample call."""
    return args, kwargs


def random(*shape: int) -> torch.Tensor:
    """Normally distributed float32 of this shape, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
