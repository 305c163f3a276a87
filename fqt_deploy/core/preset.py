"""Presets: one name for several settings; a setting that is given beside it counts first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fqt_deploy.core.option import GRADIENTS, check_options, option, options_in

PresetName = Literal["fast", "close"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"recipe": "scq+agp", "grad_bits": None, "weight_bits": 1, "activation_bits": 4},
    "close": {"recipe": "scq", "grad_bits": 8, "weight_bits": 4, "activation_bits": 8},
}
"""The settings that each preset stands for; those of ``fast`` are the defaults."""


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """The option that others take their defaults from."""

    preset: PresetName = option(
        "fast",
        "Take the defaults of a step that is as fast as possible (fast), or of one that learns almost as PyTorch's and "
        "takes longer (close): recipe scq, 8 bits of gradients and activations, 4 of weights.",
        section=GRADIENTS,
    )

    def __post_init__(self) -> None:
        check_options(self)


def without_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Spell ``settings`` without a preset: as the settings that it stands for, and those that are given beside it.

    Raises:
        FqtError: FQT202 for a preset that there is not.
    """
    if "preset" not in settings:
        return dict(settings)
    name = PresetOptions(preset=settings["preset"]).preset
    return {**PRESETS[name], **{other: value for other, value in settings.items() if other != "preset"}}


PRESET_OPTIONS = options_in(PresetOptions)
"""The option by name."""
