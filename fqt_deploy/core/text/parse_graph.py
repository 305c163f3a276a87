"""Parser of the text of a training graph."""

from __future__ import annotations

import contextlib
import logging
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import LayerRecord, StateTensor, TrainingGraph, meta_tensor, propagate
from fqt_deploy.core.manifest import InputSpec
from fqt_deploy.core.manifest_laws import RESERVED_NAMES
from fqt_deploy.core.text.arguments import bound_arguments
from fqt_deploy.core.text.filler import filler
from fqt_deploy.core.text.literals import VALUE, parse_constant, parse_tensor_type, parse_type, type_text
from fqt_deploy.core.text.metadata import parse_metadata
from fqt_deploy.core.text.print_graph import GraphHeader
from fqt_deploy.core.text.scanner import NAME, Scanner
from fqt_deploy.core.text.typed_fields import parse_fields

CODE = "FQT208"

_ROLES = ("input", "target", *get_args(get_type_hints(StateTensor)["role"]))
_INDEX = re.compile(r"\[\d+\]")
_RULE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""The errors that PyTorch's and our own shape rules raise for operands that do not fit."""


def parse_graph(text: str, *, origin: Path | None = None, values: Mapping[str, Tensor] | None = None) -> TrainingGraph:
    """The graph that ``text`` describes, as ``graph_text`` writes it.

    A type may be left out, or be ``?``: it follows from the operands. One that is stated is checked. The operators must
    be defined, which importing ``fqt_deploy.passes`` does.

    Args:
        text: one statement a line.
        origin: the file of the text, which errors then show a line of.
        values: initial state by name; of what is not in it ``filler`` gives the values.

    Raises:
        FqtError: FQT208 with line and column for text that is no graph, FQT505 for values that do not fit.
    """
    return _Parser(Scanner(text, code=CODE, origin=origin), values or {}).parse()


@dataclass
class _Parser:
    """The state of reading one text: a method for each kind of line."""

    scanner: Scanner
    values: Mapping[str, Tensor]
    nodes: dict[str, fx.Node] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    graph: TrainingGraph = field(init=False)

    def parse(self) -> TrainingGraph:
        """Read all lines and return their graph."""
        scanner = self.scanner
        if scanner.text and scanner.at_end_of_line():
            scanner.next_line()
        if scanner.accept("graph ") is None:
            raise scanner.error("a graph begins with a line such as 'graph stage=captured batch=8'")
        header = parse_fields(scanner, GraphHeader, "the first line", end="\n")
        module = fx.GraphModule(torch.nn.Module(), fx.Graph())
        self.graph = TrainingGraph(module, [], [], {}, **vars(header))
        while scanner.next_line():
            self._line()
        self.graph.graph.output(tuple(self.results))
        self.graph.graph.lint()
        module.recompile()
        return self.graph

    def _line(self) -> None:
        scanner = self.scanner
        scanner.skip_blanks()
        at = scanner.position
        if (name := scanner.accept(VALUE)) is not None:
            self._call(name[1:], at)
            return
        word = scanner.expect(NAME, "a value's %name, or what the line is")
        if word == "layer":
            self._layer(at)
        elif word == "output":
            self._output()
        elif word in _ROLES:
            self._input(word)
        else:
            raise scanner.unknown("kind of line", word, ["layer", "output", *_ROLES], at)

    def _layer(self, at: int) -> None:
        path = self.scanner.name("a layer's path")
        self.scanner.expect("=", "'='")
        kind = self.scanner.expect(re.compile("conv2d|linear"), "conv2d or linear")
        if self.graph.layer(path) is not None:
            raise self.scanner.error(f"there are two layers {path!r}", at=at)
        record = parse_fields(self.scanner, LayerRecord, "a layer", end="\n", given={"path": path, "kind": kind})
        self.graph.layers.append(record)

    def _input(self, role: str) -> None:
        scanner = self.scanner
        scanner.skip_blanks()
        at = scanner.position
        name = scanner.expect(VALUE, "a value's %name")[1:]
        scanner.expect("=", "'='")
        path = scanner.name("the input's name")
        if path in self.graph.inputs:
            raise scanner.error(f"there are two inputs {path!r}", at=at)
        scanner.expect(":", "':' and the input's type")
        extents, dtype = parse_tensor_type(scanner)
        node = self._new("placeholder", name, name, (), {}, at)
        node.meta["val"] = meta_tensor(extents, dtype)
        node.meta |= parse_metadata(scanner, self.graph)
        self.graph.inputs.append(path)
        if role in ("input", "target") and path not in RESERVED_NAMES:
            spec = InputSpec(path, tuple(extents), str(dtype).removeprefix("torch."), role)
            self.graph.signature = (*self.graph.signature, spec)
        elif role not in ("input", "target"):
            self.graph.state[path] = StateTensor(path, role, self._value(path, role, extents, dtype))  # type: ignore[arg-type]

    def _value(self, name: str, role: str, extents: list[int], dtype: torch.dtype) -> Tensor:
        if name not in self.values:
            return filler(name, role, extents, dtype)
        value = self.values[name]
        if list(value.shape) != extents or value.dtype != dtype:
            given, wanted = type_text(value), type_text(meta_tensor(extents, dtype))
            raise FqtError(f"the value of {name} is {given}; the graph wants {wanted}", code="FQT505")
        return value

    def _call(self, name: str, at: int) -> None:
        scanner = self.scanner
        scanner.expect("=", "'='")
        scanner.skip_blanks()
        where = scanner.position
        if (operand := scanner.accept(VALUE)) is not None:
            index = scanner.expect(_INDEX, "an index such as [0]")
            target: Any = operator.getitem
            args: tuple[Any, ...] = (self._node(operand[1:], where), int(index[1:-1]))
            kwargs: dict[str, Any] = {}
        else:
            target = self._operator(scanner.expect(NAME, "an operator such as aten.relu"), where)
            args, kwargs = self._arguments(target, where)
        node = self._new("call_function", name, target, args, kwargs, at)
        stated = None
        if scanner.accept(":") is not None:
            scanner.skip_blanks()
            at, stated = scanner.position, parse_type(scanner)
        try:
            with _quiet_shape_rules():
                propagate(node)
        except _RULE_ERRORS as error:
            cause = str(error).strip().partition("\n")[0] or type(error).__name__
            raise scanner.error(f"{target} cannot take these operands: {cause}", at=where) from error
        computed = type_text(node.meta["val"])
        if stated not in (None, "?", computed):
            raise scanner.error(f"%{name} is stated to be {stated}, but {target} computes {computed}", at=at)
        node.meta |= parse_metadata(scanner, self.graph)

    def _operator(self, name: str, at: int) -> Any:
        """The overload of a spelling such as ``aten.relu`` or ``aten.add.Tensor``."""
        space, _, rest = name.partition(".")
        packet, _, overload = rest.partition(".")
        try:
            return getattr(getattr(getattr(torch.ops, space), packet), overload or "default")
        except AttributeError:
            known = {entry.replace("::", ".") for entry in torch._C._dispatch_get_all_op_names()}
            near = [entry for entry in known if entry.startswith(f"{space}.")]
            raise self.scanner.unknown("operator", name, near, at) from None

    def _arguments(self, target: Any, at: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        scanner = self.scanner
        scanner.expect("(", "'(' and the operands")
        places: list[Any] = []
        named: dict[str, Any] = {}
        while scanner.accept(")") is None:
            if places or named:
                scanner.expect(",", "',' or ')'")
            if (key := scanner.accept(_KEY)) is not None:
                scanner.expect("=", "'='")
                named[key] = parse_constant(scanner, self._node)
            elif named:
                raise scanner.error("an operand without a name cannot follow one with a name")
            else:
                places.append(parse_constant(scanner, self._node))
        try:
            return bound_arguments(target, places, named)
        except ValueError as error:
            raise scanner.error(str(error), at=at) from None

    def _output(self) -> None:
        scanner = self.scanner
        name = scanner.name("the output's name")
        if name in self.graph.outputs:
            raise scanner.error(f"there are two outputs {name!r}")
        scanner.expect("=", "'='")
        self.graph.outputs.append(name)
        self.results.append(parse_constant(scanner, self._node))

    def _node(self, name: str, at: int) -> fx.Node:
        if name not in self.nodes:
            raise self.scanner.unknown("value", f"%{name}", [f"%{known}" for known in self.nodes], at)
        return self.nodes[name]

    def _new(self, op: str, name: str, target: Any, args: Any, kwargs: Any, at: int) -> fx.Node:
        if name in self.nodes:
            raise self.scanner.error(f"%{name} is computed twice", at=at)
        node = self.graph.graph.create_node(op, target, args, kwargs, name=name)
        if node.name != name:
            raise self.scanner.error(f"a value cannot be called %{name}", at=at, hint=f"%{node.name} would do")
        self.nodes[name] = node
        return node


@contextlib.contextmanager
def _quiet_shape_rules() -> Iterator[None]:
    """Within this context PyTorch does not log the errors of shape rules beside raising them."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


_KEY = re.compile(r"[A-Za-z_]\w*(?=\s*=)")
