"""Loads and runs a compiled step; imports neither torch nor the compiler."""

from __future__ import annotations

from pathlib import Path

from fqt_deploy.runtime.artifact import read_artifact, unreplaced
from fqt_deploy.runtime.cuda_library import CudaLibrary
from fqt_deploy.runtime.library import Library
from fqt_deploy.runtime.session import Session

__all__ = ["Session", "load"]


def load(folder: Path | str) -> Session:
    """Load an artifact, ready to train.

    Raises:
        FqtError: FQT501 to FQT503 or FQT509 if it cannot be used, FQT402 to FQT406 if this machine cannot run it,
            FQT508 if it is being replaced.
    """
    with unreplaced(Path(folder)):
        manifest, state, path = read_artifact(folder)
        library = CudaLibrary(path, manifest) if manifest.target["name"] == "cuda" else Library(path)
    return Session(manifest, library, state)
