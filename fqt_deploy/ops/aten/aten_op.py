"""What is common to ATen ops that have a kernel: one class per overload, with loop nest, ONNX nodes and traits."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import arguments_of, bind
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.op import OPS, Cost, Kind, Op, Traits
from fqt_deploy.ops.traits import BatchRule, Layout, Nan, Sign, Zero

aten = torch.ops.aten
prims = torch.ops.prims

Samples = Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
"""Positional and keyword arguments of calls, with real tensors."""

STORAGE = (
    "dtype", "output_dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "implicit",
    "sparse_grad",
)  # fmt: skip
"""Keywords about how a result is stored: the result's own type says all that matters, kernels write contiguously."""


class AtenOp(Op):
    """One overload of an ATen op.

    The fields of a class are the arguments of the overload's schema that it honours, by their names there but for
    ``self``, which is ``x``. A call that gives another argument a value is refused: none is dropped.

    Attributes:
        samples: calls that reach every branch.
    """

    samples: ClassVar[Samples]

    @abstractmethod
    def stages(self, result: Tensor, name: str) -> Any:
        """The loop nest, of ``te.Tensor`` operands."""

    @abstractmethod
    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Write the nodes of the call, of ``OnnxValue`` operands, and return the name of the result."""

    def work(self, result: Tensor) -> Cost:
        """Nothing but what is moved."""
        return Cost()

    @classmethod
    def honoured(cls) -> tuple[str, ...]:
        """Names of the arguments, as in the schema, that the definition does something with."""
        return tuple("self" if f.name == "x" else f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def bound(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The call with these arguments; lists are plain lists, defaults are filled in."""
        values = bind(cls.target, tuple(args), kwargs)
        return cls(*[list(v) if isinstance(v := values[name], (list, tuple)) else v for name in cls.honoured()])


def dropped_arguments(node: fx.Node) -> list[str]:
    """The arguments of a call that its definition would not honour, as ``name=value``."""
    op = OPS.get(node.target)
    if op is None or not issubclass(op, AtenOp):
        return []
    ignored = _ignored(op)
    if not ignored:
        return []
    return [
        f"{name}={given!r}" for name, given in arguments_of(node).items() if name in ignored and given != ignored[name]
    ]


@cache
def _ignored(op: type[AtenOp]) -> dict[str, Any]:
    """The defaults, by name, of the arguments that ``op`` does not honour; they must be given no other value."""
    defaults = {a.name: a.default_value for a in op.target._schema.arguments if a.has_default_value()}
    return {name: value for name, value in defaults.items() if name not in op.honoured() and name not in STORAGE}


def moves_elements(node: fx.Node) -> bool:
    """Whether ``node`` calls an ATen op that puts elements elsewhere, or makes constants, and computes on none."""
    return node.op == "call_function" and is_move(OPS.get(node.target))


def is_move(op: type[Op] | None) -> bool:
    """Whether ``op`` is such an ATen op."""
    return (
        op is not None
        and issubclass(op, AtenOp)
        and op.traits.kind is Kind.ELEMENTWISE
        and op.traits.layout is Layout.OPAQUE
    )


_T = TypeVar("_T", bound=type[AtenOp])


@dataclass_transform(eq_default=False, frozen_default=True)
def define_aten(
    target: Any, *, kind: Kind, batch: BatchRule, zero: Zero, sign: Sign, nan: Nan, layout: Layout, samples: Samples
) -> Callable[[_T], _T]:
    """Define the overload ``target`` from a class.

    Raises:
        TypeError: if a field or a trait names no argument of the schema, or an argument without default is no field.
        ValueError: for an overload that is defined already.
    """

    def register(cls: _T) -> _T:
        dataclass(frozen=True, eq=False)(cls)
        enter(cls, target, Traits(kind=kind, batch=batch, zero=zero, sign=sign, nan=nan, layout=layout), samples)
        return cls

    return register


def enter(cls: type[AtenOp], target: Any, traits: Traits, samples: Samples) -> None:
    """Add the definition ``cls`` of ``target`` to the table of ops, after checking it against the schema."""
    if target in OPS:
        raise ValueError(f"{target} is already defined")
    names = [argument.name for argument in target._schema.arguments]
    needed = [a.name for a in target._schema.arguments if not a.has_default_value()]
    honoured = cls.honoured()
    wrong = [n for n in (*honoured, *traits.operands()) if n not in names]
    missing = [n for n in needed if n not in honoured and n not in getattr(cls, "shape_arguments", ())]
    if wrong or missing or cls.__abstractmethods__ or not samples:
        lacking = [*missing, *sorted(cls.__abstractmethods__), *([] if samples else ["samples"])]
        raise TypeError(f"definition of {target}: unknown {wrong}, missing {lacking}")
    cls.target, cls.traits, cls.samples = target, traits, samples
    cls.name = str(target).split(".")[1]
    OPS[target] = cls


def aten_ops() -> dict[Any, type[AtenOp]]:
    """The definitions of ATen ops by target."""
    return {target: op for target, op in OPS.items() if issubclass(op, AtenOp)}


def extents(tensor: Any) -> list[int]:
    """Shape of a tensor as plain integers."""
    return [int(d) for d in tensor.shape]
