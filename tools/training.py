"""The parts that every training loop here needs: a learning rate schedule, batches and an accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Predictor(Protocol):
    """The part of a session that ``accuracy`` needs."""

    def predict(self, x: Array) -> Array:
        """Logits ``[N, classes] float32`` of ``x: [N, ...] float32``."""


def cosine(lr: float, step: int, steps: int) -> float:
    """Learning rate of step ``step`` of ``steps``: from ``lr`` down to almost 0 along half a cosine."""
    return 0.5 * lr * (1.0 + math.cos(math.pi * step / steps))


def batches(samples: int, batch: int, steps: int, seed: int = 0) -> Iterator[Array]:
    """Indices ``[batch] int64`` of ``steps`` batches; every pass over the samples is in a new random order.

    A rest that fills no batch is left out, in every pass another one.
    """
    if batch > samples:
        raise ValueError(f"{samples} samples do not fill a batch of {batch}")
    generator = np.random.default_rng(seed)
    order, position = generator.permutation(samples), 0
    for _ in range(steps):
        if position + batch > samples:
            order, position = generator.permutation(samples), 0
        yield order[position : position + batch]
        position += batch


def accuracy(session: Predictor, x: Array, y: Array) -> float:
    """Share of samples ``x: [N, ...] float32`` whose largest logit is that of their label, ``y: [N] int64``."""
    return float((session.predict(x).argmax(axis=1) == y).mean())
