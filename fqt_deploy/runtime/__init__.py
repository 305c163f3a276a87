"""Loads and runs a compiled step; imports neither torch nor the compiler."""

from __future__ import annotations

from pathlib import Path

from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.library import Library
from fqt_deploy.runtime.session import Session

__all__ = ["Session", "load"]


def load(folder: Path | str) -> Session:
    """Load an artifact, ready to train; FQT402, FQT501 to FQT503 or FQT509 if it cannot be used."""
    manifest, state, library = read_artifact(folder)
    return Session(manifest, Library(library), state)
