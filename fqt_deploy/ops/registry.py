"""Importing this module defines every op in this folder and those below it."""

from __future__ import annotations

import importlib
import pkgutil

import fqt_deploy.ops

for _module in pkgutil.walk_packages(fqt_deploy.ops.__path__, "fqt_deploy.ops."):
    if _module.name != __name__:
        importlib.import_module(_module.name)
