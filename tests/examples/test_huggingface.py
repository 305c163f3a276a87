"""The example that feeds a step from a Hugging Face data set: it learns, and its batches are views of the data set."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.runtime.arrays import check_input

FOLDER = Path(__file__).parents[2] / "examples" / "training"


def test_batches_are_views_and_the_step_learns(
    digits_artifact: Path, digits: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    datasets = pytest.importorskip("datasets")
    images, labels = (tensor.numpy()[:404] for tensor in digits)
    features = {"x": datasets.Array3D(images.shape[1:], "float32"), "y": datasets.Value("int64")}
    data = datasets.Dataset.from_dict({"x": images, "y": labels}, features=datasets.Features(features))
    data.save_to_disk(tmp_path / "data")
    monkeypatch.syspath_prepend(str(FOLDER))
    example = importlib.import_module("huggingface")
    stored = datasets.load_from_disk(tmp_path / "data")
    whole = list(example.batches(stored, 8, np.random.default_rng(0)))
    order = np.random.default_rng(0).permutation(50) * 8
    assert len(whole) == 50
    for start, batch in zip(order, whole, strict=True):
        assert np.array_equal(batch["x"], images[start : start + 8])
        assert np.array_equal(batch["y"], labels[start : start + 8])
        assert not batch["x"].flags.writeable, "a copy could be written"
    spec = fqt_deploy.load(digits_artifact).manifest.model_inputs[0]
    taken = [check_input(spec, batch["x"]).ctypes.data == batch["x"].ctypes.data for batch in whole]
    print("taken without a copy:", sum(taken), "of", len(taken))
    arguments = ["huggingface.py", tmp_path / "data", digits_artifact]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--epochs", "4"])
    runpy.run_path(str(FOLDER / "huggingface.py"), run_name="__main__")
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
