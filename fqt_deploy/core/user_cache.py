"""The folder of files that are kept between compilations and belong to the user, not to a model."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder, which may not exist yet: in ``XDG_CACHE_HOME``, by default ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fqt-deploy"


def default_log() -> Path:
    """The path where ``--tune`` keeps what it measures, in the user's cache folder."""
    return user_cache() / "tuned_tiles.jsonl"
