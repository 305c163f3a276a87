"""What a compilation depends on besides model and options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fqt_deploy.build_cache.surroundings import are_unchanged, file_states, loaded_files, surroundings


def test_they_are_the_same_as_long_as_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(surroundings())
    assert list(surroundings()) == first
    monkeypatch.setenv("COLUMNS", "77")
    assert list(surroundings()) == first
    for name in ("RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"):  # a restart finds it again
        monkeypatch.setenv(name, "7")
    assert list(surroundings()) == first


def test_environment_and_default_dtype_belong_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(surroundings())
    monkeypatch.setenv("WIDTH", "64")
    second = list(surroundings())
    assert second != first
    torch.set_default_dtype(torch.float64)
    try:
        assert list(surroundings()) != second
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_file_that_changes_or_goes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("1")
    states = file_states([str(path), str(tmp_path / "none"), str(tmp_path), "/proc/cpuinfo"])
    assert [name for name, _, _ in states] == [str(path)]
    assert are_unchanged(states)
    path.write_text("2")
    os.utime(path, ns=(0, states[0][2] + 1))
    assert not are_unchanged(states)
    path.unlink()
    assert not are_unchanged(states)


def test_loaded_files_are_those_of_packages_and_of_the_user() -> None:
    files = loaded_files()
    assert {torch.__file__, __file__} <= files
    assert os.__file__ not in files
