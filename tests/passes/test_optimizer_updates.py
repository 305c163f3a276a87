"""What an optimizer keeps beside a parameter."""

from __future__ import annotations

import torch

from fqt_deploy.core.optimizer import Adam
from fqt_deploy.passes.optimizer_updates import zero_state


def _kept(*extents: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    state = zero_state(Adam(moment_bits=8), "w", torch.zeros(extents))
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}


def test_moments_in_8_bits_are_codes_and_scales_of_blocks() -> None:
    """A convolution's rows of 576 elements are six blocks of 96."""
    assert _kept(64, 64, 3, 3) == {
        "adam_m/w": (torch.uint8, (64, 64, 3, 3)),
        "adam_v/w": (torch.uint8, (64, 64, 3, 3)),
        "adam_m_scale/w": (torch.float32, (64, 6)),
        "adam_v_scale/w": (torch.float32, (64, 6)),
    }


def test_small_parameters_and_odd_rows_keep_fp32() -> None:
    """Less than 4096 elements, or rows that no block divides."""
    for extents in ((64, 32), (64, 3, 7, 7)):
        assert _kept(*extents) == {name: (torch.float32, extents) for name in ("adam_m/w", "adam_v/w")}
