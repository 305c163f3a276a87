"""Bits of the weights and activations of layers, as a person chooses them: for all, and for those that a glob names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option_kinds import Kind, choice, number, string

ActivationBits = Literal[1, 2, 3, 4, 8]
ACTIVATION_BITS: tuple[int, ...] = get_args(ActivationBits)
"""Widths that an activation can be quantized to."""
WeightBits = Literal[1, 2, 4]
WEIGHT_BITS: tuple[int, ...] = get_args(WeightBits)
"""Widths that a weight can be quantized to."""


@dataclass(frozen=True)
class LayerBits:
    """Layers with bits of their own.

    Attributes:
        pattern: glob over module paths, such as ``layer3.*``.
        weights: bits of a weight.
        activations: bits of an activation.
    """

    pattern: str
    weights: int
    activations: int

    def __post_init__(self) -> None:
        for what, given, kind in (
            ("the glob of --bits", self.pattern, string()),
            (f"the bits of the weights of {self.pattern!r}", self.weights, choice(WEIGHT_BITS)),
            (f"the bits of the activations of {self.pattern!r}", self.activations, choice(ACTIVATION_BITS)),
        ):
            try:
                kind.accept(given)
            except ValueError:
                raise FqtError(f"{what} are {given!r}; they must be {kind.wanted}", code="FQT202") from None


def layer_bits_kind() -> Kind:
    """Bits by layer, also as a dict from globs to pairs, or as texts ``GLOB=WEIGHTS,ACTIVATIONS``."""

    def accept(value: Any) -> tuple[LayerBits, ...]:
        if isinstance(value, Mapping):
            return tuple(_of_pair(pattern, pair) for pattern, pair in value.items())
        if not isinstance(value, tuple | list) or not all(isinstance(each, LayerBits) for each in value):
            raise ValueError
        return tuple(value)

    def read(text: str) -> Any:
        pattern, equals, pair = text.rpartition("=")
        numbers = [number(int).read(part.strip()) for part in pair.split(",")]
        return LayerBits(pattern, *numbers) if equals and len(numbers) == 2 else text

    wanted = (
        "a dict from globs to bits of weights and activations, a list of LayerBits, or on the command line "
        "GLOB=WEIGHTS,ACTIVATIONS"
    )
    return Kind("GLOB=WEIGHTS,ACTIVATIONS", wanted, accept, read, repeatable=True)


def _of_pair(pattern: Any, pair: Any) -> LayerBits:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError
    return LayerBits(pattern, *pair)
