"""A compiled step fed by a Hugging Face data set, without PyTorch's loader: python huggingface.py FOLDER STEP.fqt.

FOLDER is a data set that ``Dataset.save_to_disk`` wrote, with the columns ``x`` (``Array3D`` of float32) and ``y``
(int64). Arrow keeps them as a step takes them, mapped from the file: rows that lie one after the other are a view of
it, not a copy. So rows are shuffled once, before the data set is written, and whole batches here.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk

import fqt_deploy


def batches(data: Dataset, size: int, order: np.random.Generator) -> Any:
    """Whole batches in random order: arrays by name, views of the data set's memory where that is in one piece."""
    features = {name: np.dtype(data.features[name].dtype) for name in ("x", "y")}
    shape = data.features["x"].shape
    for start in order.permutation(len(data) // size) * size:
        table = data.with_format("arrow")[int(start) : int(start) + size].combine_chunks()
        flat = {name: table.column(name).combine_chunks() for name in features}
        while hasattr(flat["x"], "storage"):
            flat["x"] = flat["x"].storage
        while hasattr(flat["x"], "flatten") and flat["x"].type.num_fields:
            flat["x"] = flat["x"].flatten()
        yield {"x": flat["x"].to_numpy().reshape(size, *shape), "y": flat["y"].to_numpy()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("step", type=Path, help="an artifact of fqt-compile")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    step = fqt_deploy.load(args.step)
    data, order = load_from_disk(args.data), np.random.default_rng(0)
    for epoch in range(args.epochs):
        losses = [step.step(batch) for batch in batches(data, step.manifest.batch, order)]
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}")
