"""The definition of an op: one class holds all of it, and an instance of the class is one call.

The fields of the class are the op's schema. A field of type ``Operand`` holds whatever stands for a tensor at the stage
that makes the instance: a ``torch.Tensor`` in ``reference`` and ``cost``, a fake one in ``fake``, a ``te.Tensor`` in
``compute``, the name of an ONNX value in ``onnx_body``, an ``fx.Node`` in ``decompose``.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias, TypeVar, dataclass_transform

import torch
from torch import Tensor, fx

from fqt_deploy.core.call import bind
from fqt_deploy.ops.traits import BatchRule, Layout, Nan, Sign, Zero

Operand: TypeAlias = Any
"""A tensor, or what stands for one."""
OptionalOperand: TypeAlias = Any
"""A tensor, or what stands for one, or None where it may be absent."""

OPS: dict[Any, type[Op]] = {}
"""Every defined op by its target, in order of definition."""
FQT_OPS: dict[str, type[FqtOp]] = {}
"""The ops of this compiler by name, in order of definition."""


class Kind(enum.Enum):
    """Kinds of ops by how code generation may group an op with its neighbours."""

    ELEMENTWISE = "elementwise"
    """Each output element is a cheap expression of a few input elements: may be inlined into its consumers."""
    ROOT = "root"
    """A reduction or packing loop nest: element-wise producers may be inlined into it."""
    PRODUCT = "product"
    """A contraction or hand-scheduled kernel: reads only materialized tensors."""
    COMPOSITE = "composite"
    """An op without a kernel of its own: ``decompose`` spells it in other ops before code generation."""
    UPDATE = "update"
    """The kind of an optimizer update, which writes some of its operands in place."""
    EXCHANGE = "exchange"
    """A copy of its operand, which the runtime replaces by what other processes have too, until something reads it."""


@dataclass(frozen=True)
class Cost:
    """Work of one call, for the roofline column of the profiler.

    Attributes:
        flops: floating point operations.
        bit_ops: single-bit multiply-accumulates times two.
        bytes_moved: bytes read plus bytes written, each operand once.
    """

    flops: int = 0
    bit_ops: int = 0
    bytes_moved: int = 0


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The traits that say how an op may be treated; nothing here has a default.

    Attributes:
        kind: how it may be grouped with its neighbours.
        batch: which axis of the (first) result holds the samples of the batch.
        zero: when the result is zero.
        sign: where the result is positive and negative.
        nan: what becomes of a NaN in an operand.
        layout: what becomes of a permutation.
    """

    kind: Kind
    batch: BatchRule
    zero: Zero
    sign: Sign
    nan: Nan
    layout: Layout

    def operands(self) -> tuple[str, ...]:
        """Names of the operands, and of the numbers, that the traits name."""
        rules = (self.zero, self.batch, self.sign.not_negative)
        same = () if self.sign.same_as is None else (self.sign.same_as,)
        return (*same, *[name for rule in rules for name in getattr(rule, "operands", ())])


class Op(ABC):
    """An op, whoever named it: ours (``FqtOp``) or PyTorch's (``AtenOp``).

    Attributes:
        target: what a node calls.
        name: without namespace and overload.
        traits: how passes and code generation may treat it.
        varying: names of the whole numbers in which calls differ that are otherwise equal. One kernel serves all of
            these calls: it reads the numbers from memory, and the loop nest is given tensors int32 [] in their place.
        exchanged_sums: of an op whose results the runtime replaces at once by those of all processes, how many of them,
            from the first, are sums over rows; those behind are moments. None for any other op.
        exchanged_rows: of an op whose result the runtime replaces later by the sum over all processes, the operand that
            names the only rows that are not zero. None for one whose rows all count, and for any other op.
    """

    target: ClassVar[Any]
    name: ClassVar[str]
    traits: ClassVar[Traits]
    varying: ClassVar[tuple[str, ...]] = ()
    exchanged_sums: ClassVar[int | None] = None
    exchanged_rows: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def bound(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The call with these arguments, whatever stands for its tensors."""

    @abstractmethod
    def stages(self, result: Tensor, name: str) -> Any:
        """The loop nest: one ``te.Tensor``, or a tuple of them.

        Args:
            result: meta tensor with the result's shape and dtype.
            name: name of the stages, where the op does not name them after itself.
        """

    @abstractmethod
    def work(self, result: Tensor) -> Cost:
        """The cost of the call, from fake operands."""

    def window_size(self) -> int:
        """Returns how many elements of an operand one element of the result reads: those of a window, otherwise 1."""
        return 1

    def mentions(self) -> int:
        """Returns how often the text of one element of the result mentions an operand, tests for NaN included."""
        return self.window_size()

    @classmethod
    def match(cls, node: Any) -> Self | None:
        """The call that ``node`` makes, if it calls this op."""
        if not isinstance(node, fx.Node) or node.op != "call_function" or node.target is not cls.target:
            return None
        return cls.bound(node.args, node.kwargs)


def op_of(node: fx.Node) -> type[Op] | None:
    """The definition of the op that ``node`` calls; None for inputs, outputs, ``getitem`` and what is not defined."""
    return OPS.get(node.target) if node.op == "call_function" else None


class FqtOp(Op):
    """An op ``torch.ops.fqt.<name>`` of this compiler.

    Attributes:
        tolerance: largest relative error allowed for floating point outputs; integers and bits are equal.
    """

    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def reference(self) -> Any:
        """The result in plain PyTorch, the oracle of every test; its annotation is part of the schema."""

    @abstractmethod
    def fake(self) -> Any:
        """New empty contiguous tensors of the result's shape and dtype; ``ValueError`` on illegal shapes."""

    @abstractmethod
    def cost(self) -> Cost:
        """Work of the call."""

    @staticmethod
    @abstractmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Argument tuples for tests: small cases and edge cases, with a fixed seed."""

    def compute(self) -> Any:
        """The TE loop nest, independent of the target; not for COMPOSITE ops."""
        raise TypeError(f"{self.name} has no kernel of its own")

    def decompose(self, emit: Any) -> Any:
        """The result's node, or a tuple of one for each output; for COMPOSITE ops only."""
        raise TypeError(f"{self.name} is no composite")

    def onnx_body(self, op: Any) -> Any:
        """The nodes of the op's function in standard ONNX ops; returns the name of the result, or a tuple of names.

        It must not depend on shapes or attributes: one function serves all calls. Not for COMPOSITE ops.
        """
        raise TypeError(f"{self.name} has no ONNX body")

    def onnx_attributes(self) -> dict[str, Any]:
        """Attributes of the call in ONNX, by default those of the op.

        Raises:
            ValueError: if ONNX cannot compute the result exactly.
        """
        return {name: getattr(self, name) for name in self.attributes()}

    def onnx_neutral(self) -> dict[str, Tensor]:
        """Values that stand for absent operands in ONNX, by name."""
        return {}

    @classmethod
    def family(cls) -> str:
        """Returns the folder of ``fqt_deploy/ops/`` that the definition is in."""
        return cls.__module__.split(".")[2]

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of all operands and attributes in order."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def operands(cls) -> tuple[str, ...]:
        """Names of the tensor operands, optional ones included."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.type in ("Operand", "OptionalOperand"))  # type: ignore[arg-type]

    @classmethod
    def attributes(cls) -> tuple[str, ...]:
        """Names of all fields that are no tensors."""
        return tuple(name for name in cls.fields() if name not in cls.operands())

    @classmethod
    def bound(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The call with these arguments; lists are plain lists."""
        values = bind(cls.target, tuple(args), kwargs)
        return cls(*[list(v) if isinstance(v, (list, tuple)) else v for v in values.values()])

    def stages(self, result: Tensor, name: str) -> Any:
        """The loop nest; stages are named after the op."""
        return self.compute()

    def work(self, result: Tensor) -> Cost:
        """The cost of the call, as ``cost`` says it."""
        return self.cost()


_T = TypeVar("_T", bound=type[FqtOp])

_SCHEMA = {
    "Operand": "Tensor", "OptionalOperand": "Tensor?", "int": "SymInt", "float": "float", "bool": "bool", "str": "str",
    "list[int]": "SymInt[]",
}  # fmt: skip
"""PyTorch's spelling of the types of fields."""


@dataclass_transform(eq_default=False, frozen_default=True)
def define(*, kind: Kind, batch: BatchRule, zero: Zero, sign: Sign, nan: Nan, layout: Layout) -> Callable[[_T], _T]:
    """Define ``torch.ops.fqt.<name>`` from a class; its name is the class's in lower case with underscores.

    Args:
        kind: how it may be grouped with its neighbours.
        batch: which axis of the (first) result holds the samples.
        zero: when the result is zero.
        sign: where the result is positive and negative.
        nan: what becomes of a NaN in an operand.
        layout: what becomes of a permutation.

    Raises:
        TypeError: if the class lacks a fact that its kind needs, or a trait names an operand that there is not.
        ValueError: for a name that is defined already.
    """

    def register(cls: _T) -> _T:
        dataclass(frozen=True, eq=False)(cls)
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        cls.traits = Traits(kind=kind, batch=batch, zero=zero, sign=sign, nan=nan, layout=layout)
        _check(cls)
        definition = torch.library.custom_op(
            f"fqt::{cls.name}", lambda *args: cls(*args).reference(), mutates_args=(), schema=_schema_of(cls)
        )
        definition.register_fake(lambda *args: cls(*args).fake())
        cls.target = getattr(torch.ops.fqt, cls.name).default
        if cls.target in OPS:
            raise ValueError(f"op {cls.name!r} is already defined")
        OPS[cls.target] = FQT_OPS[cls.name] = cls
        return cls

    return register


def _check(cls: type[FqtOp]) -> None:
    needed = ["decompose"] if cls.traits.kind is Kind.COMPOSITE else ["compute", "onnx_body"]
    missing = [name for name in needed if getattr(cls, name) is getattr(FqtOp, name)]
    missing += sorted(cls.__abstractmethods__)
    if missing:
        raise TypeError(f"op {cls.name!r} of kind {cls.traits.kind.name} lacks {', '.join(missing)}")
    named = cls.traits.operands()
    if unknown := [name for name in named if name not in cls.operands()]:
        raise TypeError(f"traits of op {cls.name!r} name {', '.join(unknown)}; its operands are {cls.operands()}")


def _schema_of(cls: type[FqtOp]) -> str:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    defaults = ["" if f.default is dataclasses.MISSING else f"={f.default}" for f in fields]
    parameters = ", ".join(
        f"{_SCHEMA[str(f.type)]} {f.name}{default}" for f, default in zip(fields, defaults, strict=True)
    )
    returned = str(cls.reference.__annotations__["return"])
    count = returned.count("Tensor")
    if not count:
        raise TypeError(f"the reference of op {cls.name!r} does not say how many tensors it returns")
    return f"({parameters}) -> {'Tensor' if count == 1 else '(' + ', '.join(['Tensor'] * count) + ')'}"


def tensor_bytes(*tensors: Tensor) -> int:
    """Total size of ``tensors`` in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)
