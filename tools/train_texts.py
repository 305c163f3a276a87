"""Train the text classifier of the examples on the texts that it makes, in 1 bit and with fp32 gradients.

Texts of up to half the length go to the step for short ones, as in fine-tuning with batches of similar lengths.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from tools.examples import compile_example

Batch = dict[str, NDArray[Any]]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "text_classifier.py"
SETTINGS: dict[str, dict[str, Any]] = {"1-bit": {}, "fp32": {"recipe": "none", "exclude": ("*",)}}
"""The rows of the report, with what each compiles."""


def made_texts(samples: int, seed: int) -> Batch:
    """``samples`` texts of the example, by name."""
    return {name: t.numpy() for name, t in runpy.run_path(str(EXAMPLE))["texts"](samples, seed=seed).items()}


def by_length(texts: Batch, short: int) -> list[Batch]:
    """The long texts, and those that fit into ``short`` words, cut to that."""
    fits = texts["attention_mask"].sum(1) <= short
    long_ones = {name: array[~fits] for name, array in texts.items()}
    short_ones = {name: array[fits][:, :short] if array.ndim == 2 else array[fits] for name, array in texts.items()}
    return [long_ones, short_ones]


def train(artifact: Path, data: Batch, held_out: Batch, epochs: int) -> tuple[float, float]:
    """The share of held-out texts that are classified rightly after ``epochs``, and the seconds of training."""
    session = fqt_deploy.load(artifact)
    batch, short = session.manifest.batch, session.manifest.variants[1].inputs[0].shape[1]
    begun = time.perf_counter()
    for epoch in range(epochs):
        order = np.random.default_rng(epoch)
        steps = []
        for group in by_length(data, short):
            index = order.permutation(len(group["labels"]))
            steps += [(group, index[i : i + batch]) for i in range(0, len(index) - batch + 1, batch)]
        for group, rows in (steps[i] for i in order.permutation(len(steps))):
            session.step({name: array[rows] for name, array in group.items()}, check=True)
    seconds = time.perf_counter() - begun
    groups = by_length(held_out, short)
    right = [session.predict(group).argmax(1) == group["labels"] for group in groups]
    return float(np.concatenate(right).mean()), seconds


def main() -> None:
    """Parse the command line, compile and train each row, and print its accuracy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4096, help="texts to train on")
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args()
    data, held_out = made_texts(arguments.samples, 1), made_texts(1024, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in SETTINGS.items():
            artifact = compile_example(load_model(EXAMPLE), settings, Path(folder) / name).output
            accuracy, seconds = train(artifact, data, held_out, arguments.epochs)
            print(f"{name}: accuracy {100 * accuracy:.1f} % on 1024 texts, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main()
