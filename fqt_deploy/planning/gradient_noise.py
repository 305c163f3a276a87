"""The noise of quantized gradients: how far those of one step lie from the gradients in fp32, by repeated draws.

A compiled step of plain SGD with learning rate 1 changes a parameter by its gradient. Every draw starts from the same
weights and takes the example batch with another seed; the same step with recipe ``none`` has the gradients in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.runtime import load

DRAWS = 8
"""Number of seeds; the error of the mean of so many is a small part of what differs between numbers of bits."""
PROBE = SGD(lr=1.0)
"""The optimizer of a step that subtracts the gradient from the parameters."""

Gradients = Mapping[str, NDArray[np.float64]]


def gradients_of(folder: Path, source: ModelSource, draws: int) -> Iterator[Gradients]:
    """The gradients of the 1-bit layers' weights, by path, of the step in ``folder``, which ends with ``PROBE``.

    One draw after the other is made: all of them at once are large.

    Args:
        folder: the artifact.
        source: its model, whose example batch is taken.
        draws: number of seeds.
    """
    session = load(folder)
    batch: dict[str, Any] = {
        spec.name: tensor.detach().numpy()
        for spec, tensor in zip(source.call.signature, source.example_inputs, strict=True)
    }
    before = {name: value.copy() for name, value in session.state_dict().items()}
    layers = [layer.path for layer in session.manifest.layers if layer.decision == "1-bit"]
    for seed in range(draws):
        session.load_state_dict(before)
        session.seed = seed
        session.step(batch)
        after = session.state_dict()
        yield {path: before[n].astype(np.float64) - after[n] for path in layers if (n := _weight(path, before))}


def gradient_noise(exact: Gradients, draws: Iterable[Gradients]) -> tuple[float, dict[str, float]]:
    """The mean squared distance of ``draws`` from the ``exact`` gradients, in squared norms of these.

    Returns:
        That of all layers together, and of each by path.
    """
    sizes = {path: float(np.square(gradient).sum()) for path, gradient in exact.items()}
    distances = dict.fromkeys(exact, 0.0)
    count = 0
    for draw in draws:
        count += 1
        for path, gradient in exact.items():
            distances[path] += float(np.square(draw[path] - gradient).sum())
    by_layer = {path: distances[path] / count / size if size else 0.0 for path, size in sizes.items()}
    return sum(distances.values()) / count / (sum(sizes.values()) or 1.0), by_layer


def _weight(path: str, state: Mapping[str, Any]) -> str | None:
    """The name of the layer's weight in ``state``."""
    return next((name for name in (f"{path}.weight", path) if name in state), None)
