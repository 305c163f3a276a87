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
_LEAST, _PART = 1024, 16
"""All of so few weights are looked at; of more, one in so many: a small layer's step is short, and so is the look."""
_RUN = 64
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


@dataclass(frozen=True)
class _Layer:
    """One layer's share of the samples.

    Attributes:
        path: module path.
        size: number of its weights.
        weight: the sample of them, a view [runs, length].
        moment: the same of the optimizer's running mean of their gradients; None if it keeps none.
        part: where the sample lies among those of all layers.
    """

    path: str
    size: int
    weight: Array
    moment: Array | None
    part: slice


@dataclass
class TrainingWatch:
    """Watches the weights of a session's convolutions and linear layers.

    The samples of all layers lie in one array, so that a look takes a few operations for the whole model.

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
        kind, self._decay, self._gain = _moment(self.session.manifest)
        self._layers: list[_Layer] = []
        begin = 0
        for layer in self.session.manifest.layers:
            weight = state.get(f"param/{layer.path}.weight")
            if weight is not None:
                moment, sample = state.get(f"{kind}/{layer.path}.weight"), _sample(weight)
                part = slice(begin, begin + sample.size)
                moments = None if moment is None else _sample(moment)
                self._layers.append(_Layer(layer.path, weight.size, sample, moments, part))
                begin = part.stop
        self._starts = np.array([layer.part.start for layer in self._layers], np.int64)
        self._counts = np.array([layer.weight.size for layer in self._layers], np.int64)
        self._scale = np.sqrt([layer.size for layer in self._layers] / self._counts)
        self._blind = np.array([layer.moment is None for layer in self._layers])
        self._before: Array | None = None
        self._signs: Array | None = None
        self._mean, self._square = np.zeros(begin, np.float32), np.zeros(begin, np.float32)
        self._seen = 0

    def begin(self) -> None:
        """To be called before each step."""
        if (self.session.step_count + 1) % self.every == 0:
            self._before = self._moments()

    def end(self) -> list[WatchRow]:
        """To be called after each step: the rows of one that is watched; none of another."""
        step = self.session.step_count
        if step % self.every or not self._layers:
            return []
        columns = (*self._gradients(), *self._weights())
        return [
            WatchRow(
                step, layer.path, float(norm), float(noise), float(flips), float(large),
                self.kept.get(layer.path, math.nan),
            )
            for layer, norm, noise, flips, large in zip(self._layers, *columns, strict=True)
        ]  # fmt: skip

    def _moments(self) -> Array:
        """The samples of the running means; zero where there is none."""
        found = np.zeros_like(self._mean)
        for layer in self._layers:
            if layer.moment is not None:
                found[layer.part].reshape(layer.moment.shape)[...] = layer.moment
        return found

    def _gradients(self) -> tuple[Array, Array]:
        """Of each layer the norm of the gradient and its noise; NaN where they are unknown."""
        unknown = np.full(len(self._layers), math.nan)
        if self._before is None:
            return unknown, unknown
        gradient = (self._moments() - self._decay * self._before) / self._gain
        self._before = None
        squares = gradient * gradient
        norm = np.sqrt(self._sums(squares)) * self._scale
        self._mean += (1 - _MEMORY) * (gradient - self._mean)
        self._square += (1 - _MEMORY) * (squares - self._square)
        self._seen += 1
        return np.where(self._blind, unknown, norm), np.where(self._blind, unknown, self._noise())

    def _noise(self) -> Array:
        """The gradients' deviation over the norm of their mean, both running; NaN in the first step."""
        if self._seen < 2:
            return np.full(len(self._layers), math.nan)
        whole = 1 - _MEMORY**self._seen  # both began at zero
        signal = self._sums(self._mean * self._mean) / whole**2
        variance = np.maximum(0.0, self._sums(self._square) / whole - signal)
        return np.sqrt(variance / np.where(signal > 0, signal, math.nan))

    def _weights(self) -> tuple[Array, Array]:
        """Of each layer the share of signs that changed, NaN in the first step, and of large weights."""
        weights = np.empty_like(self._mean)
        for layer in self._layers:
            weights[layer.part].reshape(layer.weight.shape)[...] = layer.weight
        signs = weights > 0
        flips = (
            np.full(len(self._layers), math.nan)
            if self._signs is None
            else self._sums(signs != self._signs) / self._counts
        )
        self._signs = signs
        return flips, self._sums(np.abs(weights) >= 1) / self._counts

    def _sums(self, values: Array) -> Array:
        found: Array = np.add.reduceat(values, self._starts, dtype=np.float64)
        return found


_MEANS = {"adam": "adam_m", "adamw": "adam_m", "radam": "radam_m", "nadam": "nadam_m"}
"""The kind of state that is the mean of the gradient, of Adam and its relatives."""


def _moment(manifest: Manifest) -> tuple[str, float, float]:
    """The kind of state that averages gradients, its decay, and the factor that a gradient enters it with.

    The kind is "" where there is none: such an optimizer does not tell the gradient.
    """
    found = manifest.optimizer.hyperparameters
    if any({"betas", "momentum"} & group.keys() for group in manifest.optimizer.groups):
        return "", 0.0, 1.0  # groups average in their own ways
    if found.get("moment_bits", 32) != 32:
        return "", 0.0, 1.0  # what rounding adds would be taken for the gradient
    match manifest.optimizer.name:
        case "adam" | "adamw" | "radam" | "nadam" as name:
            return _MEANS[name], found["betas"][0], 1 - found["betas"][0]
        case "lion":
            return "lion_m", found["betas"][1], 1 - found["betas"][1]
        case "sgd":
            return "sgd_momentum", found.get("momentum", 0.0), 1 - found.get("dampening", 0.0)
    return "", 0.0, 1.0


def _sample(array: Array) -> Array:
    """A view [runs, length] of an array: all of a small one, or runs of neighbours spread over it."""
    flat = array.reshape(-1)
    if flat.size <= _LEAST:
        return flat[None]
    runs = min(SAMPLE, max(_LEAST, flat.size // _PART)) // _RUN
    return np.lib.stride_tricks.sliding_window_view(flat, _RUN)[:: (flat.size - _RUN) // (runs - 1)][:runs]
