"""The family of ATen ops that compute each output element from the same element of their (broadcast) operands.

The rows themselves are in ``arithmetic.py``, ``comparison.py``, ``transcendental.py`` and ``activation.py``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from fqt_deploy.core.call import bind
from fqt_deploy.ops.aten.aten_op import AtenOp, Samples, enter, extents
from fqt_deploy.ops.lib.dtypes import dtype_name, dtype_of
from fqt_deploy.ops.lib.float32 import number, opaque_operand
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxValue, OnnxWriter
from fqt_deploy.ops.op import Cost, Kind, Traits
from fqt_deploy.ops.traits import Layout, Nan, Sign, Zero, broadcast

OnnxNodes = str | Callable[..., str]
"""ONNX's op, or ``(graph, dtype, *operand names, **keywords) -> name of the result``."""


class Pointwise(AtenOp):
    """One element-wise overload.

    Attributes:
        expression: scalar expressions of the operands -> scalar expression of the result. Its parameters are the
            operands in the order of the schema; what stands after ``*`` are keywords, by their names in the schema.
        nodes: the same in ONNX.
        flops: rough cost of one element in floating point operations.
        compares: operands are promoted among themselves, the result is boolean.
        keeps: positions of operands that are not cast to the result's type.
    """

    expression: ClassVar[Callable[..., Any]]
    nodes: ClassVar[OnnxNodes]
    flops: ClassVar[int]
    compares: ClassVar[bool]
    keeps: ClassVar[tuple[int, ...]]
    names: ClassVar[tuple[str, ...]]
    keywords: ClassVar[tuple[str, ...]]

    def __init__(self, operands: Sequence[Any], keywords: Mapping[str, Any]) -> None:
        """The call on ``operands``: whatever stands for tensors, numbers, or None."""
        self.operands, self.given = tuple(operands), dict(keywords)

    @classmethod
    def honoured(cls) -> tuple[str, ...]:
        """The operands and keywords of the expression."""
        return (*cls.names, *cls.keywords)

    @classmethod
    def bound(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Self:
        """The call with these arguments, defaults filled in."""
        values = bind(cls.target, tuple(args), kwargs)
        return cls([values[name] for name in cls.names], {name: values[name] for name in cls.keywords})

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """One stage; operands are broadcast and cast as in PyTorch, and no two of them are known to be equal."""
        dtype = dtype_name(result.dtype)
        common = _promoted(self.operands) if self.compares else dtype
        equal = _may_be_equal(self.operands)

        def element(*index: Any) -> Any:
            operands = [
                _element(operand, index, None if position in self.keeps else common)
                for position, operand in enumerate(self.operands)
            ]
            apart = [opaque_operand(o) if i in equal else o for i, o in enumerate(operands)]
            return _cast(type(self).expression(*apart, **self.given), dtype)

        return te.compute(extents(result), element, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The nodes; operands are cast as in PyTorch."""
        common = _promoted(self.operands) if self.compares else dtype_name(result.dtype)
        names = [
            _onnx_operand(graph, operand, None if position in self.keeps else common)
            for position, operand in enumerate(self.operands)
        ]
        written = type(self).nodes
        if isinstance(written, str):
            return graph(written, *[name for name in names if name is not None])
        return written(graph, common, *names, **self.given)

    def work(self, result: Tensor) -> Cost:
        """Returns ``flops`` floating-point operations for each element of the result."""
        return Cost(flops=self.flops * result.numel())


def pointwise(
    *targets: Any,
    expression: Callable[..., Any],
    onnx: OnnxNodes,
    flops: int,
    zero: Zero,
    sign: Sign,
    nan: Nan,
    samples: Samples,
    compares: bool = False,
    keeps: tuple[int, ...] = (),
) -> None:
    """Define element-wise overloads that share one expression; see ``Pointwise`` for the arguments."""
    parameters = inspect.signature(expression).parameters.values()
    count = sum(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in parameters)
    keywords = tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
    for target in targets:
        schema = [argument.name for argument in target._schema.arguments]
        operands = [name for name in schema if name not in keywords][:count]
        facts = {
            "expression": staticmethod(expression), "nodes": onnx if isinstance(onnx, str) else staticmethod(onnx),
            "flops": flops, "compares": compares, "keeps": keeps, "names": tuple(operands), "keywords": keywords,
            "__doc__": f"``{target}``.", "__module__": _calling_module(),
        }  # fmt: skip
        cls = type(str(target), (Pointwise,), facts)
        traits = Traits(
            kind=Kind.ELEMENTWISE, batch=broadcast, zero=zero, sign=sign, nan=nan, layout=Layout.ELEMENTWISE
        )
        enter(cls, target, traits, samples)


def by_type(boolean: str, number: str) -> OnnxNodes:
    """The ONNX operator ``boolean`` where the operands are, and ``number`` elsewhere."""

    def write(graph: OnnxWriter, dtype: str, *operands: str) -> str:
        return graph(boolean if dtype == "bool" else number, *operands)

    return write


def _calling_module() -> str:
    """The module whose row is being defined."""
    return str(sys._getframe(2).f_globals["__name__"])


def read_broadcast(tensor: te.Tensor, index: tuple[Any, ...]) -> Any:
    """``tensor`` at the position that output ``index`` broadcasts from."""
    rank = len(tensor.shape)
    aligned = index[len(index) - rank :]
    return tensor[tuple(0 if int(d) == 1 else i for d, i in zip(tensor.shape, aligned, strict=True))]


def zero_like(x: Any) -> Any:
    """A constant zero of the type of the expression ``x``."""
    return tirx.const(0, dtype_of(x))


def _element(value: Any, index: tuple[Any, ...], dtype: str | None) -> Any:
    """The element of one operand as ``dtype``, or as it is."""
    if value is None:
        return None
    if isinstance(value, te.Tensor):
        element = read_broadcast(value, index)
        return element if dtype is None else _cast(element, dtype)
    assert dtype is not None
    return number(value, dtype)


def _may_be_equal(operands: Sequence[Any]) -> frozenset[int]:
    """Positions of tensors that may have the formula of one before them: it is the same, or both are computed."""
    found = set()
    for i, operand in enumerate(operands):
        for earlier in operands[:i]:
            if isinstance(operand, te.Tensor) and isinstance(earlier, te.Tensor):
                computed = not any(isinstance(t.op, te.PlaceholderOp) for t in (operand, earlier))
                if computed or operand.same_as(earlier):
                    found.add(i)
    return frozenset(found)


def _cast(expression: Any, dtype: str) -> Any:
    return expression if dtype_of(expression) == dtype else expression.astype(dtype)


def _onnx_operand(graph: OnnxWriter, operand: Any, dtype: str | None) -> str | None:
    if operand is None:
        return None
    if isinstance(operand, OnnxValue):
        return operand.name if dtype is None else graph.cast(operand, dtype)
    return graph.constant(operand, dtype or "float32")


def _promoted(operands: tuple[Any, ...]) -> str:
    """The common type of operands that are compared: a float among them, numbers included, makes it float32."""
    tensors = [o for o in operands if isinstance(o, (te.Tensor, OnnxValue))]
    if any(isinstance(o, float) for o in operands) or any("float" in str(t.dtype) for t in tensors):
        return "float32"
    return str(tensors[0].dtype)
