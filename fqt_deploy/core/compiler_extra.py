"""Whether the compiler's packages are installed: the base package only trains."""

from __future__ import annotations

import importlib.util

from fqt_deploy.core.diagnostics import FqtError

_PACKAGES = ("torch", "tvm", "rich")


def require_compiler() -> None:
    """FQT303 unless the packages of the extra ``compiler`` are installed; imports none of them."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise FqtError(
            f"the compiler is not installed: there is no {', '.join(missing)}",
            code="FQT303",
            hint="pip install 'fqt-deploy[compiler]'; an artifact trains without it",
        )
