"""fqt-deploy compiles a PyTorch model into a 1-bit fully quantized training step that runs without PyTorch.

Public names are resolved on first use, so that ``import fqt_deploy`` loads neither torch nor the compiler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fqt_deploy.api import check as check
    from fqt_deploy.api import compile as compile
    from fqt_deploy.compiled_step import CompiledStep as CompiledStep
    from fqt_deploy.compiler.check import CheckReport as CheckReport
    from fqt_deploy.core.diagnostics import FqtError as FqtError
    from fqt_deploy.core.optimizer import SGD as SGD
    from fqt_deploy.core.optimizer import Adadelta as Adadelta
    from fqt_deploy.core.optimizer import Adafactor as Adafactor
    from fqt_deploy.core.optimizer import Adagrad as Adagrad
    from fqt_deploy.core.optimizer import Adam as Adam
    from fqt_deploy.core.optimizer import AdamW as AdamW
    from fqt_deploy.core.optimizer import Lion as Lion
    from fqt_deploy.core.optimizer import NAdam as NAdam
    from fqt_deploy.core.optimizer import RAdam as RAdam
    from fqt_deploy.core.optimizer import RMSprop as RMSprop
    from fqt_deploy.core.parameter_group import ParameterGroup as ParameterGroup
    from fqt_deploy.runtime import load as load
    from fqt_deploy.runtime.session import Session as Session

__version__ = "0.1.0"

_PUBLIC = {
    "Adadelta": "core.optimizer",
    "Adafactor": "core.optimizer",
    "Adagrad": "core.optimizer",
    "Adam": "core.optimizer",
    "AdamW": "core.optimizer",
    "CheckReport": "compiler.check",
    "CompiledStep": "compiled_step",
    "FqtError": "core.diagnostics",
    "Lion": "core.optimizer",
    "NAdam": "core.optimizer",
    "ParameterGroup": "core.parameter_group",
    "RAdam": "core.optimizer",
    "RMSprop": "core.optimizer",
    "SGD": "core.optimizer",
    "Session": "runtime.session",
    "check": "api",
    "compile": "api",
    "load": "runtime",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _PUBLIC[name] in ("api", "compiled_step", "compiler.check"):
        importlib.import_module(f"{__name__}.core.compiler_extra").require_compiler()
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
