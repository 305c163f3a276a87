"""Importing this module defines every op in this folder."""

from __future__ import annotations

import importlib
import pkgutil

import fqt_deploy.ops

for _module in pkgutil.iter_modules(fqt_deploy.ops.__path__):
    if _module.name != "registry":
        importlib.import_module(f"fqt_deploy.ops.{_module.name}")
