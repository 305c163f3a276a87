"""What an optimizer keeps beside a parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.describe import describe_model
from fqt_deploy.core.optimizer import Adam
from fqt_deploy.passes.optimizer_updates import zero_state
from fqt_deploy.settings import options_of


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


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 64), torch.arange(4) % 3


@pytest.mark.parametrize(("width", "bits", "told"), [(64, 8, False), (60, 8, True), (60, 32, False)])
def test_moments_that_all_stay_in_fp32_are_told(width: int, bits: int, told: bool) -> None:
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 3))
    notes = fqt_deploy.check(model, example_inputs=_batch(), moment_bits=bits).notes
    assert any(note.startswith("all moments stay in fp32: ") for note in notes) == told


@pytest.mark.parametrize(("bits", "other"), [(8, True), (32, False)])
def test_checkpoints_of_another_code_are_of_another_step(
    bits: int, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code means something else in another format, though it lies in a state of the same shape."""
    source = ModelSource(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), nn.functional.cross_entropy, _batch())
    options = options_of({"moment_bits": bits, "exclude": ("*",)})
    graphs = lower_model(source, options)

    def known_by() -> str:
        return describe_model(source, options, graphs.train, graphs.predict, target={}).fingerprint

    before = known_by()
    monkeypatch.setattr("fqt_deploy.ops.lib.moment_code.FORMAT", 1)
    assert (known_by() != before) == other
