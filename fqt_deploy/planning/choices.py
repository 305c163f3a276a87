"""The choices for a layer: fp32, or some bits of an activation with the weights' own; and the options that make one."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from dataclasses import replace

from fqt_deploy.core.layer_bits import ACTIVATION_BITS, LayerBits
from fqt_deploy.core.options import CompileOptions

Choice = int | None
"""Bits of an activation of a layer whose weights have as many as the options say; None for a layer in fp32."""
CHOICES: tuple[Choice, ...] = (None, *sorted(ACTIVATION_BITS, reverse=True))
"""Every choice, from the least noise to the most."""


def told(choice: Choice) -> str:
    """The choice in a word, such as ``4 bits``."""
    return "fp32" if choice is None else f"{choice} bit{'s' if choice > 1 else ''}"


def options_for(options: CompileOptions, choices: Mapping[str, Choice]) -> CompileOptions:
    """The ``options`` with these choices by path of a layer, as ``--exclude`` and ``--bits`` spell them."""
    excluded = tuple(glob.escape(path) for path, choice in choices.items() if choice is None)
    weights = options.weight_bits
    bits = tuple(
        LayerBits(glob.escape(path), weights, choice) for path, choice in choices.items() if choice is not None
    )
    return replace(options, exclude=(*options.exclude, *excluded), bits=bits)
