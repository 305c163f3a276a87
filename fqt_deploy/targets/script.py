"""TVMScript's decorators for kernels written by hand, without a search through the source of every calling frame.

TVM's own ones ask for the stack with its source lines at each expansion of a macro, which is a third of the time that
kernels take to generate: every frame looks for its file among all modules, and PyTorch has thousands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.parser._core import parse, scan_macro
from tvm.script.parser.core.parser import Parser, ScriptMacro
from tvm.script.parser.core.utils import inspect_function_capture
from tvm.tirx.script.parser.entry import TIRMacro


class _Macro(TIRMacro):  # type: ignore[misc]
    """A macro that finds its parser by the frames alone."""

    def _find_parser_def(self) -> Parser:
        frame = inspect.currentframe()
        while frame is not None:
            if ScriptMacro.parser_object_name in frame.f_globals:
                return frame.f_globals[ScriptMacro.parser_object_name]
            frame = frame.f_back
        raise RuntimeError(f"{self.func.__name__} is a macro: call it in a kernel")


def macro(function: Callable[..., None]) -> Callable[..., None]:
    """A ``T.macro``, of statements to expand into kernels; names are those of the place where it is written."""
    source, captured = scan_macro(function, inspect_function_capture(function))
    expand: Callable[..., None] = _Macro(source, captured, function, hygienic=True)
    return expand


def prim_func(*, s_tir: bool) -> Callable[[Callable[..., Any]], tirx.PrimFunc]:
    """A decorator like ``T.prim_func``, for a function written where the names of its parameters' types are defined.

    Args:
        s_tir: read by the parser, off the decorator's source: whether the kernel is a nest of loops and blocks.
    """
    del s_tir

    def decorate(function: Callable[..., Any]) -> tirx.PrimFunc:
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        local = frame.f_back.f_locals  # names that only types use are not captured
        named = {n for text in function.__annotations__.values() for n in re.findall(r"[^\W\d]\w*", str(text))}
        return parse(function, {n: local[n] for n in named & local.keys()} | inspect_function_capture(function))

    decorate.dispatch_token = "tirx"  # type: ignore[attr-defined] # how the parser knows the decorator
    return decorate
