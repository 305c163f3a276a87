"""``fqt::stream_key``: the key of one random stream, from seed, step, layer and role."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import multiply_uint32, uint32
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.onnx_bits import shift_right
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

_MIX = 0x9E3779B1
_MASK = 0xFFFFFFFF
_STARTS = (0x243F6A88, 0x85A308D3)
"""Starts of the hash, different for the two words of a key."""


def _bound(value: Any, use: Callable[[Any], Any]) -> Any:
    """The expression ``use(value)`` with ``value`` spelled out once: rounds that repeat it would grow exponentially."""
    name = tirx.Var("mixed", "uint32")
    return tirx.Let(name, value, use(name))


def _number(value: Any) -> Any:
    """A number that is built into the kernel, or read."""
    return value().astype("uint32") if isinstance(value, te.Tensor) else uint32(value)


@define(kind=Kind.ROOT, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class StreamKey(FqtOp):
    """Fold the words of all four numbers into two independent 32-bit states.

    Attributes:
        seed: [] int64.
        step: [] int64.
        layer: number of the layer.
        role: what the stream is for.

    Returns:
        [2] int32.
    """

    seed: Operand
    step: Operand
    layer: int
    role: int

    varying: ClassVar[tuple[str, ...]] = ("layer", "role")

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        words = [self.seed & _MASK, (self.seed >> 32) & _MASK, self.step & _MASK, (self.step >> 32) & _MASK]
        words += [torch.tensor(self.layer), torch.tensor(self.role)]
        states = []
        for start in _STARTS:
            state = torch.tensor(start)
            for word in words:
                state = multiply_uint32(state ^ word, _MIX)
                state = state ^ (state >> 16)
            states.append(state)
        unsigned = torch.stack(states)
        return torch.where(unsigned >= 2**31, unsigned - 2**32, unsigned).to(torch.int32)

    def fake(self) -> Tensor:
        """Shape rule: [], [] -> [2]."""
        if self.seed.ndim or self.step.ndim:
            raise ValueError("seed and step are scalars")
        return self.seed.new_empty(2, dtype=torch.int32)

    def compute(self) -> te.Tensor:
        """The loop nest: a dozen integer operations."""

        def word(scalar: Any, shift: int) -> Any:
            return tirx.Cast("uint32", scalar >> tirx.const(shift, "int64"))

        def state(i: Any) -> Any:
            words = [
                word(self.seed(), 0),
                word(self.seed(), 32),
                word(self.step(), 0),
                word(self.step(), 32),
                _number(self.layer),
                _number(self.role),
            ]
            mixed: Any = tirx.Select(i.equal(0), uint32(_STARTS[0]), uint32(_STARTS[1]))
            for w in words:
                mixed = _bound((mixed ^ w) * uint32(_MIX), lambda name: name ^ (name >> uint32(16)))
            return tirx.reinterpret("int32", mixed)

        return te.compute((2,), state, name="stream_key")

    def cost(self) -> Cost:
        """The cost: negligible."""
        return Cost(bytes_moved=24)

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """The samples: small, negative and large numbers."""
        for seed, step, layer, role in ((0, 0, 0, 0), (1, 2, 3, 4), (2**40 + 17, 2**33, 99, 5), (-1, 1, 0, 1)):
            yield torch.tensor(seed), torch.tensor(step), layer, role

    def onnx_body(self, op: Body) -> str:
        """The ONNX body: the hash states of both words of the key at once."""
        words = []
        for scalar in (self.seed, self.step):
            wide = op.cast(scalar, "uint64")
            words += [op.cast(wide, "uint32"), op.cast(shift_right(op, wide, 32, "uint64"), "uint32")]
        words += [op.cast(op.integer(name), "uint32") for name in ("layer", "role")]
        state = op.constant(_STARTS, "uint32")
        for word in words:
            state = op("Mul", op("BitwiseXor", state, word), op.constant(_MIX, "uint32"))
            state = op("BitwiseXor", state, shift_right(op, state, 16))
        return op.cast(state, "int32")
