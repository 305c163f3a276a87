"""Statistics by which 1-bit training is debugged: of each layer's gradient and weights, every few steps, at small cost.

They are taken from a fixed sample of each layer's weights and of the optimizer's first moments, which the step keeps
anyway; gradients are what the optimizer sees of them, clipped where clipping is on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime.session import Session

SAMPLE = 8192
"""Largest number of weights of a layer that are looked at."""
_RUN = 256
_MEMORY = 0.9
"""Decay of the running means from which noise is told."""

Array = NDArray[Any]


@dataclass(frozen=True)
class WatchRow:
    """The statistics of one layer in one step.

    Attributes:
        step: number of the step, from 1.
        layer: module path.
        grad_norm: Euclidean norm of the weight's gradient, estimated; NaN where the optimizer keeps no moment of it.
        grad_noise: standard deviation of the gradient over the steps watched so far, over the norm of its mean; NaN
            before the second.
        flips: share of the weights whose sign has changed since the step that was watched before; NaN in the first.
        saturated: share of the weights with a magnitude of at least 1.
        kept: share of the gradient's groups that pruning keeps; NaN where the artifact does not say.
    """

    step: int
    layer: str
    grad_norm: float
    grad_noise: float
    flips: float
    saturated: float
    kept: float


COLUMNS = tuple(WatchRow.__dataclass_fields__)


@dataclass
class _Layer:
    """What is kept of a layer between steps."""

    path: str
    weight: Array
    moment: Array | None
    places: Array
    decay: float
    gain: float
    kept: float
    before: Array | None = None
    signs: Array | None = None
    mean: Array | None = None
    square: Array | None = None
    seen: int = 0


@dataclass
class TrainingWatch:
    """Watches the weights of a session's convolutions and linear layers.

    Args:
        session: a session whose steps run on the CPU.
        every: number of steps from one that is watched to the next.
        kept: share of the gradient that each layer keeps, by module path.

    Raises:
        FqtError: FQT202 if its state is elsewhere.
    """

    session: Session
    every: int
    kept: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        state = self.session.tensors()
        if not all(isinstance(array, np.ndarray) for array in state.values()):
            raise FqtError(
                "--watch looks at state in the memory of the CPU", code="FQT202", hint="leave it out on a GPU"
            )
        kind, decay, gain = _moment(self.session.manifest)
        self._layers = []
        for layer in self.session.manifest.layers:
            weight = state.get(f"param/{layer.path}.weight")
            if weight is not None:
                moment = state.get(f"{kind}/{layer.path}.weight")
                kept = self.kept.get(layer.path, math.nan)
                places = _places(weight.size)
                self._layers.append(_Layer(layer.path, weight, moment, places, decay, gain, kept))

    def begin(self) -> None:
        """To be called before each step."""
        if (self.session.step_count + 1) % self.every == 0:
            for layer in self._layers:
                layer.before = None if layer.moment is None else _sampled(layer.moment, layer.places)

    def end(self) -> list[WatchRow]:
        """To be called after each step: the rows of one that is watched; none of another."""
        step = self.session.step_count
        return [] if step % self.every else [_row(step, layer) for layer in self._layers]


def _moment(manifest: Manifest) -> tuple[str, float, float]:
    """The kind of state that averages gradients, its decay, and the factor that a gradient enters it with.

    The kind is "" where there is none: such an optimizer does not tell the gradient.
    """
    found = manifest.optimizer.hyperparameters
    if any({"betas", "momentum"} & group.keys() for group in manifest.optimizer.groups):
        return "", 0.0, 1.0  # groups average in their own ways
    match manifest.optimizer.name:
        case "adam" | "adamw":
            return "adam_m", found["betas"][0], 1 - found["betas"][0]
        case "lion":
            return "lion_m", found["betas"][1], 1 - found["betas"][1]
        case "sgd":
            return "sgd_momentum", found.get("momentum", 0.0), 1 - found.get("dampening", 0.0)
    return "", 0.0, 1.0


def _places(size: int) -> Array:
    """Indices of the sample in a flat array: all, or runs of neighbours spread over it."""
    if size <= SAMPLE:
        return np.arange(size)
    starts = np.linspace(0, size - _RUN, SAMPLE // _RUN).astype(np.int64)
    return (starts[:, None] + np.arange(_RUN)).reshape(-1)


def _sampled(array: Array, places: Array) -> Array:
    sample: Array = array.reshape(-1)[places]
    return sample


def _row(step: int, layer: _Layer) -> WatchRow:
    weights = _sampled(layer.weight, layer.places)
    signs = weights > 0
    flips = math.nan if layer.signs is None else float(np.mean(signs != layer.signs))
    layer.signs = signs
    norm = noise = math.nan
    if layer.moment is not None and layer.before is not None:
        gradient = (_sampled(layer.moment, layer.places) - layer.decay * layer.before) / layer.gain
        norm = float(np.linalg.norm(gradient)) * math.sqrt(layer.weight.size / len(gradient))
        noise = _noise(layer, gradient)
    layer.before = None
    return WatchRow(step, layer.path, norm, noise, flips, float(np.mean(np.abs(weights) >= 1)), layer.kept)


def _noise(layer: _Layer, gradient: Array) -> float:
    """The gradient's deviation over the norm of its mean, both running; NaN in the first step."""
    if layer.mean is None or layer.square is None:
        layer.mean, layer.square = np.zeros_like(gradient), np.zeros_like(gradient)
    layer.mean += (1 - _MEMORY) * (gradient - layer.mean)
    layer.square += (1 - _MEMORY) * (gradient * gradient - layer.square)
    layer.seen += 1
    if layer.seen < 2:
        return math.nan
    whole = 1 - _MEMORY**layer.seen  # both began at zero
    signal = float(np.sum((layer.mean / whole) ** 2))
    variance = max(0.0, float(np.sum(layer.square / whole)) - signal)
    return math.sqrt(variance / signal) if signal > 0 else math.nan
