"""ATen ops that make constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fqt_deploy.ops.aten.aten_op import AtenOp, Samples, aten, define_aten, extents
from fqt_deploy.ops.aten.samples import MIXED, call
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_body import OnnxWriter
from fqt_deploy.ops.op import Kind, Operand
from fqt_deploy.ops.traits import (
    NEVER_NEGATIVE,
    NEVER_ZERO,
    BatchRule,
    Layout,
    Nan,
    Sign,
    broadcast,
    keeps_sign,
    no_samples,
)


class Constant(AtenOp):
    """Every element is the same number."""

    def number(self) -> float:
        """Returns the number that every element is."""
        return 0.0

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """The loop nest that writes the number everywhere."""
        constant = tirx.const(self.number(), dtype_name(result.dtype))
        return te.compute(extents(result), lambda *_: constant, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """Writes one Expand node of the number, and returns the name of its result; a scalar is the number itself."""
        scalar = graph.constant(self.number(), dtype_name(result.dtype))
        return graph("Expand", scalar, graph.constant(extents(result), "int64")) if extents(result) else scalar


def _constant(target: Any, batch: BatchRule, samples: Samples, sign: Sign) -> Any:
    return define_aten(
        target, kind=Kind.ELEMENTWISE, batch=batch, zero=NEVER_ZERO, layout=Layout.OPAQUE, samples=samples,
        sign=sign, nan=Nan.KEPT,
    )  # fmt: skip


@_constant(aten.full.default, no_samples, [call([2, 2], 1.5)], keeps_sign("fill_value"))
class Full(Constant):
    """A number in a shape."""

    size: list[int]
    fill_value: float

    def number(self) -> float:
        """Returns the number that the call gives."""
        return self.fill_value


@_constant(aten.full_like.default, broadcast, [call(MIXED, 2.5)], keeps_sign("fill_value"))
class FullLike(Constant):
    """A number in the shape of a tensor."""

    x: Operand
    fill_value: float

    def number(self) -> float:
        """Returns the number that the call gives."""
        return self.fill_value


@_constant(aten.scalar_tensor.default, no_samples, [call(3.5)], keeps_sign("s"))
class ScalarTensor(Constant):
    """A number as a tensor."""

    s: float

    def number(self) -> float:
        """Returns the number that the call gives."""
        return self.s


@_constant(aten.zeros.default, no_samples, [call([2])], NEVER_NEGATIVE)
class Zeros(Constant):
    """Zeros in a shape."""

    size: list[int]


@_constant(aten.zeros_like.default, broadcast, [call(MIXED)], NEVER_NEGATIVE)
class ZerosLike(Constant):
    """Zeros in the shape of a tensor."""

    x: Operand


@_constant(aten.empty.memory_format, no_samples, [call([0])], NEVER_NEGATIVE)
class Empty(Constant):
    """A tensor whose values mean nothing: zeros here."""

    size: list[int]


@_constant(aten.ones.default, no_samples, [call([2])], NEVER_NEGATIVE)
class Ones(Constant):
    """Ones in a shape."""

    size: list[int]

    def number(self) -> float:
        """Returns the number one."""
        return 1.0


@_constant(aten.ones_like.default, broadcast, [call(MIXED)], NEVER_NEGATIVE)
class OnesLike(Constant):
    """Ones in the shape of a tensor."""

    x: Operand

    def number(self) -> float:
        """Returns the number one."""
        return 1.0


class _Range(AtenOp):
    """Numbers at equal distances."""

    def first_and_step(self) -> tuple[float, float]:
        """The first number, and the distance."""
        return 0, 1

    def stages(self, result: Tensor, name: str) -> te.Tensor:
        """The position times the distance, plus the first."""
        dtype = dtype_name(result.dtype)
        first, step = (tirx.const(number, dtype) for number in self.first_and_step())
        return te.compute(extents(result), lambda i: i.astype(dtype) * step + first, name=name)

    def onnx(self, graph: OnnxWriter, result: Tensor) -> str:
        """The numbers, as a constant."""
        first, step = self.first_and_step()
        return graph.constant(first + step * np.arange(extents(result)[0]), dtype_name(result.dtype))


@_constant(aten.arange.start_step, no_samples, [call(1, 9, 2)], keeps_sign("start", "step"))
class ArangeStep(_Range):
    """From a number to before another, by a step."""

    start: float
    end: float
    step: float

    def first_and_step(self) -> tuple[float, float]:
        """Returns the first number and the step that the call gives."""
        return self.start, self.step


@_constant(aten.arange.default, no_samples, [call(5)], NEVER_NEGATIVE)
class Arange(_Range):
    """From 0 to before a number."""

    end: float
