"""What the base package says when it is asked to compile."""

import importlib.util

import pytest

from fqt_deploy.core.compiler_extra import require_compiler
from fqt_deploy.core.diagnostics import FqtError


def test_what_is_missing_is_named(monkeypatch):
    require_compiler()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "rich") else find(name))
    with pytest.raises(FqtError, match=r"FQT303: .*no torch, rich") as caught:
        require_compiler()
    assert "fqt-deploy[compiler]" in caught.value.hint
