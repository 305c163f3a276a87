"""The recipes of the study by name: settings of the compiler."""

from __future__ import annotations

from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.ideas import CHANGES, SCHEDULES, base_settings

Settings = dict[str, Any]

_PROJECTED = "-projected"

_PLAIN: dict[str, Settings] = {
    "psq-8": {"recipe": "psq-8"},
    "psq-1": {"recipe": "psq-1"},
    **{
        f"scq-{bits}{suffix}": {"recipe": "scq", "grad_bits": bits, "grid": grid}
        for bits in (4, 8)
        for suffix, grid in (("", "zero"), ("-minmax", "minmax"))
    },
    **{
        f"{agp}-{bits}{suffix}": {"recipe": "scq+agp", "agp": agp, "grad_bits": bits, "grid": grid}
        for agp in ("topk", "sampled", "once", "nested", "tokens")
        for bits in (2, 3, 4, 8)
        for suffix, grid in (("", "zero"), ("-minmax", "minmax"))
    },
}

_RECIPES: dict[str, Settings] = {
    "none": {"recipe": "none"},
    **{name: {**settings, "projection": "off"} for name, settings in _PLAIN.items()},
    **{name + _PROJECTED: settings for name, settings in _PLAIN.items()},
}

SIGNS: Settings = {"activation_bits": 1, "activation_grid": "sign"}
"""Activations of 1 bit that fit any data."""

ROWS: dict[str, Settings] = {
    **{name: SIGNS | settings for name, settings in _RECIPES.items()},
    **{
        f"{name}-a{bits}": {**settings, "activation_bits": bits}
        for name, settings in _RECIPES.items()
        for bits in (2, 4)
    },
    **{
        f"{name}-a{activation}-w{bits}": {**settings, "activation_bits": activation, "weight_bits": bits}
        for name, settings in _RECIPES.items()
        for activation, bits in ((4, 2), (4, 4), (8, 4))
    },
    **{f"{name}-fitted": {**settings, "activation_bits": 1} for name, settings in _RECIPES.items()},
    **{idea: {"recipe": "scq+agp", "idea": idea, **SIGNS, **base_settings(idea)} for idea in CHANGES},
    **{name: {"schedule": rows} for name, rows in SCHEDULES.items()},
}
"""Rows of the study. ``topk-4`` is ``scq+agp`` with ``agp`` topk and 4 bits on the zero grid, ``topk-4-minmax`` on the
paper's grid.

The paper's released code is ``topk-4-minmax``, its theory ``sampled-4-minmax``. Rows that end in ``-projected`` take
noise out of weight gradients, the others do not. Activations are signs, but 4 bits in rows that end in ``-a4``, with
weights of 2 or 4 bits in ``-a4-w2`` and ``-a4-w4``; 8 bits, with weights of 4, in ``-a8-w4``; and 1 bit that is no
sign in ``-fitted``, on a grid that fits the weights and images which training starts from. Ideas are one of these rows
with other passes (``ideas.py``); a schedule names rows that follow each other.
"""

TORCH_ROWS: dict[str, Settings] = {
    "torch-1bit": {"binarized": True, "bf16": False},
    "torch-fp32": {"binarized": False, "bf16": False},
    "torch-bf16": {"binarized": False, "bf16": True},
}
"""Rows that are trained in PyTorch instead: the 1-bit network with fp32 gradients, and the network as it is written."""

ALL_ROWS = (*ROWS, *TORCH_ROWS)

OPTIMIZERS: dict[str, Settings] = {
    "adam": {"optimizer": "adam", "weight_decay": 1e-5},
    "adam-b1-95": {"optimizer": "adam", "weight_decay": 1e-5, "betas": (0.95, 0.999)},
    "adam-b1-80": {"optimizer": "adam", "weight_decay": 1e-5, "betas": (0.8, 0.999)},
    "adam-b2-99": {"optimizer": "adam", "weight_decay": 1e-5, "betas": (0.9, 0.99)},
    "adam-b2-9999": {"optimizer": "adam", "weight_decay": 1e-5, "betas": (0.9, 0.9999)},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-5},
}
"""Optimizers by name, without their learning rate, which is an input of the step."""


def is_binarized(row: str) -> bool:
    """Whether the network of a row has 1-bit layers."""
    return row in ROWS or bool(TORCH_ROWS[row]["binarized"])


def check_target(row: str, target: str) -> None:
    """FQT202 for a row that trains in PyTorch, on another target than the CPU."""
    if row in TORCH_ROWS and target != "cpu":
        raise FqtError(f"row {row} trains in PyTorch on the CPU, not on {target}", code="FQT202")
