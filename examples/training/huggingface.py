"""A compiled step fed by a Hugging Face data set, without PyTorch's loader: python huggingface.py FOLDER STEP.fqt.

FOLDER is a data set that ``Dataset.save_to_disk`` wrote, with the columns ``x`` (each a list of as many float32 as a
sample has) and ``y`` (int64). Arrow keeps them as a step takes them, mapped from the file: rows that lie one after the
other are a view of it, not a copy. So rows are shuffled once, before the data set is written, and whole batches here.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

import fqt_deploy


def batches(data: Dataset, shape: tuple[int, ...], order: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Whole batches in random order, arrays by name: views of the data set where a batch lies in one piece there."""
    table = data.with_format("arrow")
    for number in order.permutation(len(data) // shape[0]).tolist():
        rows = table[number * shape[0] : (number + 1) * shape[0]]
        x, y = (rows.column(name).combine_chunks() for name in ("x", "y"))
        yield {"x": x.flatten().to_numpy().reshape(shape), "y": y.to_numpy()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("step", type=Path, help="an artifact of fqt-compile")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    step = fqt_deploy.load(args.step)
    shape = step.manifest.model_inputs[0].shape
    data, order = load_from_disk(args.data), np.random.default_rng(0)
    for epoch in range(args.epochs):
        losses = [step.step(batch) for batch in batches(data, shape, order)]
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
