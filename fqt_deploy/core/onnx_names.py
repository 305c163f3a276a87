"""Names in exported ONNX files that writer and reader share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MANIFEST_KEY = "fqt.manifest"
"""Key of the model's metadata that holds the manifest as JSON; checkpoints are matched by it."""

NEXT = "::next"
"""Ending of the name of an output that is the next value of a state input."""


@dataclass(frozen=True)
class StepFiles:
    """The files for ONNX Runtimes other than Python's.

    Attributes:
        step: the training step; state, seed and learning rates are inputs.
        prediction: the prediction; what it needs of the state are inputs.
        state: a checkpoint of the initial state, seed and learning rates.
    """

    step: Path
    prediction: Path
    state: Path


def step_files(step: Path) -> StepFiles:
    """The files of ``NAME.step.onnx`` or ``NAME.onnx``: also ``NAME.predict.onnx`` and ``NAME.state.safetensors``."""
    name = step.name.removesuffix(".onnx").removesuffix(".step")
    return StepFiles(step, step.with_name(f"{name}.predict.onnx"), step.with_name(f"{name}.state.safetensors"))
