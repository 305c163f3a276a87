"""Train on scikit-learn's digits in small batches: the default recipe beside the selection ``sampled``.

Example: ``python -m tools.train_small_batches --batches 4,5,6,8 --seeds 0,1,2``.

Batch normalization over fewer than three values has no gradient, so a selection that leaves so few is not taken, and
the default must train as well as ``sampled``. Networks are the example with convolutions and a perceptron with
``BatchNorm1d``. A seed decides the order of the images, selections and rounding.

Exit status 1 if the mean accuracy of the default is more than two points below. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from tools.examples import compile_example, load_example
from tools.train_digits import LEARNING_RATE, Digits, load_digits
from tools.training import accuracy, batches, cosine

ALLOWED = 2.0
"""Points of accuracy that the default may lie below ``sampled``."""
WIDTH = 128

SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "sampled": {"agp": "sampled"}}
"""Settings of the compiler by the name shown."""


def perceptron(batch: int) -> ModelSource:
    """Four linear layers with batch normalization of vectors between them, for ``batch`` images."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for features in (64, WIDTH, WIDTH):
        layers += [nn.Linear(features, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    return ModelSource(model, F.cross_entropy, (torch.randn(batch, 1, 8, 8), torch.arange(batch) % 10))


NETWORKS: dict[str, Callable[[int], ModelSource]] = {
    "convolutions": lambda batch: load_example("digits", batch=batch),
    "perceptron": perceptron,
}
"""Networks by name: the model for a batch of so many images."""


def train(artifact: Path, data: Digits, batch: int, epochs: int, seed: int) -> float:
    """Accuracy on the held-out images after ``epochs`` passes, in percent."""
    session = fqt_deploy.load(artifact)
    session.seed = seed
    steps = epochs * (len(data.train_x) // batch)
    for step, index in enumerate(batches(len(data.train_x), batch, steps, seed)):
        session.lr = cosine(LEARNING_RATE, step, steps)
        session.step(data.train_x[index], data.train_y[index])
    return 100 * accuracy(session, data.test_x, data.test_y)


def compare(name: str, batch: int, seeds: list[int], epochs: int, data: Digits) -> dict[str, list[float]]:
    """Accuracies in percent by the names of ``SETTINGS``, one for each of ``seeds``."""
    found: dict[str, list[float]] = {}
    for way, settings in SETTINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            artifact = compile_example(NETWORKS[name](batch), settings, Path(folder) / "step").output
            found[way] = [train(artifact, data, batch, epochs, seed) for seed in seeds]
    return found


def difference(found: dict[str, list[float]]) -> float:
    """Points that the mean of the default lies above that of ``sampled``."""
    return float(np.mean(found["default"]) - np.mean(found["sampled"]))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> int:
    """Parse the command line, train everything, print a line for each network and batch, and the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", type=_numbers, default=[4, 5, 6, 8], help="default: 4,5,6,8")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2], help="default: 0,1,2")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the images (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    data = load_digits()
    worst = 0.0
    for name in arguments.networks:
        for batch in arguments.batches:
            found = compare(name, batch, arguments.seeds, arguments.epochs, data)
            worst = min(worst, difference(found))
            shown = ", ".join(f"{way} {' '.join(f'{a:.1f}' for a in found[way])}" for way in SETTINGS)
            print(f"{name}, batch {batch}: {shown}: {difference(found):+.1f} points", flush=True)
    print(json.dumps({"worst": round(worst, 2), "allowed": -ALLOWED}))
    return 0 if worst >= -ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
