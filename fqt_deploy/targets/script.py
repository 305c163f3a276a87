"""TVMScript's decorators for kernels written by hand, quick enough to be called for every kernel of a step.

The scripts, and what they mean, are TVM's. Its own decorators take half a second for a kernel with some macros, because
each expansion asks for the stack with the source lines of all frames and parses its macro anew, and every name in an
expression becomes a program that Python compiles. Here a macro finds its parser in a list, a function is parsed once,
and names, calls and subscripts of known values are evaluated as they are. Nothing notes its line in the script.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.parser._core import doc
from tvm.script.parser.core.diagnostics import Source
from tvm.script.parser.core.error import ParserError
from tvm.script.parser.core.evaluator import ExprEvaluator
from tvm.script.parser.core.parser import Parser
from tvm.script.parser.core.utils import inspect_function_capture
from tvm.tirx.script.parser.entry import TIRMacro


def macro(function: Callable[..., None]) -> Callable[..., None]:
    """A ``T.macro``, of statements to expand into kernels; names are those of the place where it is written."""
    expand: Callable[..., None] = _Macro(_source(function), inspect_function_capture(function), function, hygienic=True)
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
        return _parsed(function, {n: local[n] for n in named & local.keys()} | inspect_function_capture(function))

    decorate.dispatch_token = "tirx"  # type: ignore[attr-defined] # how the parser knows the decorator
    return decorate


class _Source(Source):  # type: ignore[misc]
    """The source of a function, which is parsed once."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self.tree = super().as_ast()

    def as_ast(self) -> Any:
        return self.tree


_sources: dict[CodeType, _Source] = {}
"""The sources of the functions that were parsed: a function in a function is another object for every kernel."""


def _source(function: Any) -> _Source:
    code: CodeType = function.__code__
    if code not in _sources:
        _sources[code] = _Source(function)
    return _sources[code]


class _Evaluator(ExprEvaluator):  # type: ignore[misc]
    """Evaluates an expression whose operands are known without compiling it."""

    def evaluated(self, node: Any) -> Any:
        """The value of ``node``."""
        return self._value(self._visit(node))

    def _eval_expr(self, v: Any) -> Any:
        evaluate = _EVALUATED.get(type(v))
        return super()._eval_expr(v) if evaluate is None else evaluate(v, self._value)

    def _value(self, operand: Any) -> Any:
        """The value of a name or constant, all that operands are by the time that their expression is evaluated."""
        if type(operand) is doc.Constant:
            return operand.value
        if type(operand) is not doc.Name:
            return super()._eval_expr(operand)
        found = self.value_table.get(operand.id, _MISSING)
        return getattr(builtins, operand.id) if found is _MISSING else found


_MISSING = object()


def _each(nodes: Iterable[Any], value: Callable[[Any], Any]) -> Iterator[Any]:
    """The values of ``nodes``, of which a starred one is several."""
    for node in nodes:
        if type(node) is doc.Starred:
            yield from value(node.value)
        else:
            yield value(node)


def _called(node: Any, value: Callable[[Any], Any]) -> Any:
    named: dict[str, Any] = {}
    for keyword in node.keywords:
        named |= value(keyword.value) if keyword.arg is None else {keyword.arg: value(keyword.value)}
    return value(node.func)(*_each(node.args, value), **named)


_EVALUATED: Mapping[type, Callable[[Any, Callable[[Any], Any]], Any]] = {
    doc.Name: lambda node, value: value(node),
    doc.Constant: lambda node, value: value(node),
    doc.Attribute: lambda node, value: getattr(value(node.value), node.attr),
    doc.Subscript: lambda node, value: value(node.value)[value(node.slice)],
    doc.Tuple: lambda node, value: tuple(_each(node.elts, value)),
    doc.List: lambda node, value: list(_each(node.elts, value)),
    doc.Call: _called,
}
"""By the kind of an expression, its value, given a function that evaluates an operand."""


class _Parser(Parser):  # type: ignore[misc]
    """A parser that evaluates quickly and whose programs do not know their lines."""

    def eval_expr(self, node: Any, extra_vars: Mapping[str, Any] | None = None) -> Any:
        return _Evaluator(self, {**self.var_table.get(), **(extra_vars or {})}).evaluated(node)

    def with_source_span(self, node: Any) -> contextlib.AbstractContextManager[None]:
        del node
        return _NO_SPAN

    def annotate_current_source_span(self, value: Any) -> Any:
        return value


_NO_SPAN = contextlib.nullcontext()
_parsers: list[_Parser] = []
"""The parsers at work, the one that expands macros last."""


class _Macro(TIRMacro):  # type: ignore[misc]
    """A macro of the kernel that is being parsed."""

    def _find_parser_def(self) -> Parser:
        if not _parsers:
            raise RuntimeError(f"{self.func.__name__} is a macro: call it in a kernel")
        return _parsers[-1]


def _parsed(function: Any, names: Mapping[str, Any]) -> tirx.PrimFunc:
    """The kernel that ``function`` writes, well-formed, where ``names`` have values."""
    parser = _Parser(_source(function), {function.__name__: function.__annotations__})
    _parsers.append(parser)
    try:
        with IRBuilder() as builder:
            try:
                parser.parse(names)
            except ParserError as error:
                parser.report_error(error.node, error.args[0])
        kernel = builder.get()
    finally:
        _parsers.pop()
    tvm.s_tir.analysis.verify_well_formed(tvm.IRModule.from_expr(kernel))
    return kernel
