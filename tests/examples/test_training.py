"""The two training loops of examples/training: few lines apart, and both learn."""

from __future__ import annotations

import difflib
import functools
import importlib
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples" / "training"
LARGEST = 12
"""Number of lines that the loops may be apart."""


class Writer:
    """Stands for TensorBoard's, which the tests do not install.

    Attributes:
        scalars: what was written, by tag.
    """

    scalars: dict[str, list[float]]

    def __init__(self, folder: str) -> None:
        Writer.scalars = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append(value)


def test_the_loops_are_few_lines_apart() -> None:
    theirs, ours = ((FOLDER / name).read_text().splitlines() for name in ("pytorch.py", "compiled.py"))
    changes = difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes()
    # The first line says what the file is.
    apart = sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in changes if tag != "equal" and i1 > 0)
    assert 0 < apart <= LARGEST


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["pytorch.py", "compiled.py"])
def test_a_loop_learns(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Brightness tells two classes apart, in two epochs of few images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 72)
    images = (rng.integers(0, 60, (72, 3, 32, 32)) + labels[:, None, None, None] * 150).astype(np.uint8)
    np.savez(tmp_path / "train.npz", x=images, y=labels)
    np.savez(tmp_path / "test.npz", x=images[:20], y=labels[:20])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(sys, "argv", [name, "train.npz", "test.npz", "--epochs=3", "--batch=16", "--width=8"])
    monkeypatch.delitem(sys.modules, "cifar10", raising=False)
    shared = importlib.import_module("cifar10")
    monkeypatch.setattr(shared, "resnet", functools.partial(shared.resnet, blocks=(1, 1)))
    with torch.random.fork_rng():
        runpy.run_path(str(FOLDER / name), run_name="__main__")
    assert len(Writer.scalars["loss"]) == 3 * 4
    assert len(Writer.scalars["accuracy"]) == 3
    assert np.isfinite(Writer.scalars["loss"]).all()
    assert np.mean(Writer.scalars["loss"][-4:]) < np.mean(Writer.scalars["loss"][:2])
    assert (tmp_path / ("best.pt" if name == "pytorch.py" else "best.safetensors")).is_file()
