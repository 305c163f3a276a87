"""Train a compiled example on CIFAR-10 beside the same network with fp32 gradients, and compare the losses.

Example: ``python -m tools.train_cifar --data cifar10.npz --steps 300 --model vgg16 --recipe scq+agp --agp once``.

The data file is an ``npz`` with ``train_jpeg`` (uint8, all JPEG files one after the other), ``train_offsets`` (int64
``[n + 1]``: image i is bytes ``offsets[i]:offsets[i + 1]``) and ``train_labels`` (uint8 ``[n]``); the same with
``test_`` for held-out images. The last line printed is JSON: by recipe, the mean loss of the first and the last steps.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

import fqt_deploy
from fqt_deploy.core.options import Sampling
from tools.examples import EXAMPLES, compile_example, load_example
from tools.training import Array, accuracy, batches, cosine

MEAN = np.array([0.4914, 0.4822, 0.4465], dtype=np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], dtype=np.float32)
"""Deviations of CIFAR-10's red, green and blue in [0, 1]."""
REPORT_EVERY = 50
QUIET = 10.0
"""Seconds without a line, after which one says how far training is."""
ENDS = 20
"""Number of steps that ``first`` and ``last`` are means of."""


@dataclass
class Run:
    """One recipe in training.

    Attributes:
        name: recipe, with what distinguishes it.
        session: the compiled step.
        lr: initial learning rate.
        losses: losses, one a step.
        seconds: spent in steps.
    """

    name: str
    session: Any
    lr: float
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def step(self, x: Array, y: Array, lr: float) -> None:
        """Train on one batch."""
        start = time.perf_counter()
        self.session.lr = lr
        self.losses.append(self.session.step(x, y))
        self.seconds += time.perf_counter() - start

    def summary(self) -> dict[str, float]:
        """The numbers that the last line says about this run."""
        return {
            "first": float(np.mean(self.losses[:ENDS])),
            "last": float(np.mean(self.losses[-ENDS:])),
            "step_ms": 1e3 * self.seconds / len(self.losses),
        }


def load_images(data: Path, part: str, count: int) -> tuple[Array, Array]:
    """The first ``count`` images of ``part`` (``train`` or ``test``); all of them if there are fewer.

    Returns:
        ``[n, 3, 32, 32] float32`` of about zero mean and unit variance by channel, and labels ``[n] int64``.
    """
    with np.load(data) as arrays:
        blob, offsets = arrays[f"{part}_jpeg"].tobytes(), arrays[f"{part}_offsets"].tolist()
        labels = arrays[f"{part}_labels"].astype(np.int64)[:count]
    files = [blob[offsets[i] : offsets[i + 1]] for i in range(len(labels))]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    normalized = (pixels.astype(np.float32) / 255.0 - MEAN) / STD
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), labels


def train(runs: list[Run], x: Array, y: Array, batch: int, steps: int) -> None:
    """Give every run the same batches, and print the mean losses every ``REPORT_EVERY`` steps."""
    begin = told = time.perf_counter()
    for step, index in enumerate(batches(len(x), batch, steps)):
        images, labels = x[index], y[index]
        for run in runs:
            run.step(images, labels, cosine(run.lr, step, steps))
        done = step + 1
        if done % REPORT_EVERY == 0 or done == steps:
            recent = (done - 1) % REPORT_EVERY + 1
            losses = ", ".join(f"{run.name} {np.mean(run.losses[-recent:]):.4f}" for run in runs)
            print(f"steps {done - recent + 1}-{done}: mean loss {losses}", flush=True)
            told = time.perf_counter()
        elif time.perf_counter() - told > QUIET:
            told = time.perf_counter()
            print(f"step {done} of {steps}, {(told - begin) / done * (steps - done):.0f} s left", flush=True)


def run(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compile and train what the command line asks for; returns the summaries by recipe."""
    chosen = {"recipe": arguments.recipe, "agp": arguments.agp, "grad_bits": arguments.grad_bits, "lr": arguments.lr}
    settings = {name: value for name, value in chosen.items() if value is not None}
    label = arguments.recipe + (f" {arguments.agp}" if arguments.agp and arguments.recipe == "scq+agp" else "")
    recipes = {label: settings, "none": settings | {"recipe": "none"}}
    source = load_example(arguments.model, arguments.batch)
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in recipes.items():
            print(f"compiling {arguments.model} with recipe {name} ...", flush=True)
            result = compile_example(source, options, Path(folder) / name.replace(" ", "-"))
            lr = float(result.manifest.optimizer.groups[0]["lr"])
            runs.append(Run(name, fqt_deploy.load(result.output), lr))
        batch = result.manifest.batch
        x, y = load_images(arguments.data, "train", arguments.steps * batch)
        train(runs, x, y, batch, arguments.steps)
        summaries = {one.name: one.summary() for one in runs}
        if arguments.test_images:
            test_x, test_y = load_images(arguments.data, "test", arguments.test_images)
            for one in runs:
                summaries[one.name]["accuracy"] = accuracy(one.session, test_x, test_y)
    return summaries


def main() -> int:
    """Parse the command line, train, and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="npz file with the images")
    parser.add_argument("--model", choices=sorted(set(EXAMPLES) - {"digits"}), default="vgg16")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, help="samples in a step (default: the example's)")
    parser.add_argument("--recipe", choices=["none", "psq-8", "psq-1", "scq", "scq+agp"], default="scq+agp")
    parser.add_argument("--agp", choices=get_args(Sampling))
    parser.add_argument("--grad-bits", type=int, choices=[1, 2, 3, 4, 8])
    parser.add_argument("--lr", type=float, help="initial learning rate (default: the example's); it falls by a cosine")
    parser.add_argument("--test-images", type=int, default=2000, help="held-out images to measure accuracy on; 0: none")
    print(json.dumps(run(parser.parse_args())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
