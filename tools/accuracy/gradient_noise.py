"""Noise of weight gradients by layer: bias, variance and cosine of whole compiled steps, by repeated draws.

A step of plain SGD with learning rate 1 changes a parameter by its gradient. Every draw starts from the same weights
and takes the same batch with another seed; recipe ``none`` gives the true gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fqt_deploy
from tools.accuracy.artifacts import artifact_of
from tools.accuracy.networks import Network
from tools.accuracy.rows import ROWS
from tools.training import Array

PROBE = {"optimizer": "sgd", "lr": 1.0}
"""A step of it subtracts the gradient from the parameters."""
WHOLE = "(all)"
"""Name of all binarized layers together."""


@dataclass(frozen=True)
class GradientNoise:
    """The noise of one layer's gradient under one recipe.

    Attributes:
        layer: name of the weight, or ``WHOLE``.
        variance: mean squared distance of a draw from the mean of all draws, relative to the squared norm of the true
            gradient.
        bias: squared distance of the mean from the true gradient, less what the variance explains of it, relative
            likewise; about 0 for an unbiased estimator.
        unbiasedness: that squared distance over what the variance explains; about 1 for an unbiased estimator.
        cosine: the cosine of a draw with the true gradient, on average.
    """

    layer: str
    variance: float
    bias: float
    unbiasedness: float
    cosine: float


class GradientProbe:
    """Gradients of the compiled step of one recipe.

    Args:
        network: what is compiled.
        row: the recipe.
        classes: number of classes of the task.
        batch: samples of a step.
        cache: folder of artifacts.
    """

    def __init__(self, network: Network, row: str, classes: int, batch: int, cache: Path) -> None:
        self.session = fqt_deploy.load(artifact_of(network, classes, batch, ROWS[row] | PROBE, cache))

    def gradients(self, weights: Mapping[str, Array], x: Array, y: Array, seed: int) -> dict[str, Array]:
        """Gradients of the weights of the binarized layers, by name, in double precision."""
        self.session.load_state_dict(weights)
        self.session.seed = seed
        self.session.step(x, y)
        after = self.session.state_dict()
        decisions = self.session.manifest.layers
        names = [f"{layer.path}.weight" for layer in decisions if layer.decision == "1-bit"]
        return {name: weights[name].astype(np.float64) - after[name] for name in names}


def gradient_noise(true: Mapping[str, Array], draws: list[dict[str, Array]]) -> list[GradientNoise]:
    """Compare ``draws`` of each layer's gradient with ``true``, and all layers together."""
    names = list(true)
    found = [_compare(name, true[name].ravel(), [draw[name].ravel() for draw in draws]) for name in names]
    joined = [np.concatenate([draw[name].ravel() for name in names]) for draw in [dict(true), *draws]]
    return [*found, _compare(WHOLE, joined[0], joined[1:])]


def _compare(layer: str, true: Array, draws: list[Array]) -> GradientNoise:
    count, norm = len(draws), float(true @ true)
    mean = np.mean(draws, axis=0)
    variance = sum(float((draw - mean) @ (draw - mean)) for draw in draws) / (count - 1)
    distance, explained = float((mean - true) @ (mean - true)), variance / count
    cosines = [float(draw @ true) / float(np.linalg.norm(draw) * np.sqrt(norm)) for draw in draws]
    return GradientNoise(
        layer=layer,
        variance=variance / norm,
        bias=(distance - explained) / norm,
        unbiasedness=distance / explained if explained else float("nan"),
        cosine=float(np.mean(cosines)),
    )
