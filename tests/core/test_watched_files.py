"""Files that are read within a block are known, however they are opened; those that are written are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fqt_deploy.core.watched_files import watched_files


def test_what_is_read_is_known(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["text", "bytes", "array.npy", "descriptor", "weights.pt"]
    np.save(tmp_path / "array.npy", np.zeros(3))
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pt")
    for name in ("text", "bytes", "descriptor", "before"):
        (tmp_path / name).write_text("x")
    (tmp_path / "before").read_text()
    with watched_files() as outer, watched_files() as read:
        Path("text").read_text()
        (tmp_path / "bytes").read_bytes()
        np.load("array.npy")
        os.close(os.open(tmp_path / "descriptor", os.O_RDONLY))
        torch.load("weights.pt")
        (tmp_path / "written").write_text("y")
        np.save(tmp_path / "written.npy", np.zeros(3))
    (tmp_path / "text").read_text()
    inside = {path for path in read if path.startswith(str(tmp_path))}
    assert inside == {str(tmp_path / name) for name in names}
    assert inside <= outer
