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
    arrow = pytest.importorskip("pyarrow")
    samples = arrow.FixedSizeListArray.from_arrays(arrow.array(images.reshape(-1)), images[0].size)
    table = datasets.table.InMemoryTable(arrow.table({"x": samples, "y": labels}))
    data = datasets.Dataset(table, fingerprint="0")
    data.save_to_disk(tmp_path / "data")
    monkeypatch.syspath_prepend(str(FOLDER))
    example = importlib.import_module("huggingface")
    stored = datasets.load_from_disk(tmp_path / "data")
    whole = list(example.batches(stored, (8, *images.shape[1:]), np.random.default_rng(0)))
    order = np.random.default_rng(0).permutation(50) * 8
    assert len(whole) == 50
    for start, batch in zip(order, whole, strict=True):
        assert np.array_equal(batch["x"], images[start : start + 8])
        assert np.array_equal(batch["y"], labels[start : start + 8])
        assert not batch["x"].flags.writeable, "a copy could be written"
    spec = fqt_deploy.load(digits_artifact).manifest.model_inputs[0]
    assert all(check_input(spec, b["x"]).ctypes.data == b["x"].ctypes.data for b in whole), "the step copies nothing"
    arguments = ["huggingface.py", tmp_path / "data", digits_artifact]
    monkeypatch.setattr(sys, "argv", [*map(str, arguments), "--epochs", "4"])
    runpy.run_path(str(FOLDER / "huggingface.py"), run_name="__main__")
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
