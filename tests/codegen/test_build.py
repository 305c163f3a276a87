"""The library of a step holds its kernels by name, and nothing for debuggers."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _readelf(option: str, library: Path) -> str:
    return subprocess.run(["readelf", option, "--wide", library], capture_output=True, text=True, check=True).stdout


def test_a_library_is_not_described_to_debuggers(digits_artifact):
    sections = _readelf("--section-headers", digits_artifact / "step.so")
    assert ".text" in sections
    assert ".debug" not in sections


def test_functions_keep_their_names(digits_artifact):
    symbols = _readelf("--symbols", digits_artifact / "step.so")
    assert "fqt_adam_update_" in symbols
