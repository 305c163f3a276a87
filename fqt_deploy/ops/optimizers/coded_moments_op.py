"""The base of updates by two moments in 8 bits, which are decoded, updated as ``MomentsOp`` has it, and encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fqt_deploy.ops.lib.counter_random import element_hash, element_hash_compute, flat_index, uint32
from fqt_deploy.ops.lib.late_modules import te, tirx
from fqt_deploy.ops.lib.moment_code import LEAST, MEAN, SQUARE, MomentCode
from fqt_deploy.ops.lib.onnx_bits import element_hash as onnx_element_hash
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.op import Operand
from fqt_deploy.ops.optimizers.moments_op import MomentsOp, sample_moments

LANES = 16
"""Number of partial maxima of a block: elements of a vector."""
LONGEST_BLOCK = 128
"""Number of elements of the longest block: its moments are half a kilobyte each, or 16 vectors in registers."""


class CodedMomentsOp(MomentsOp):
    """An update by moments that are kept as codes of ``ops/lib/moment_code.py``, uint8, in blocks of a row's elements.

    The parameter is updated by the moments before they are rounded. A subclass declares the fields of ``MomentsOp``,
    with codes for moments, and behind them the scales of blocks and the random stream of the rounding.

    The random number of an element is that of its place in its block, xor that of the block: a hash for each would
    cost a quarter of the update. The stream begins with those of places, and goes on with those of blocks. The numbers
    of any two elements are independent, so noise of sums and means is that of a hash for each element.
    """

    m_scale: Operand
    v_scale: Operand
    key: Operand

    def old_moments(self) -> tuple[Tensor, Tensor]:
        """Reference: the moments before the update."""
        return _decoded(MEAN, self.m, self.m_scale), _decoded(SQUARE, self.v, self.v_scale)

    def all_kept(self, param: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Reference: the parameter, and codes and scales of its moments, where an update is due, else the old ones."""
        count, blocks = self._length(), self.m_scale.numel()
        stream = element_hash(torch.arange(count + blocks), self.key)
        random = stream[count:].unsqueeze(1) ^ stream[:count]
        m_codes, m_scale = _encoded(MEAN, m, random, self.m_scale.shape)
        v_codes, v_scale = _encoded(SQUARE, v, random, self.v_scale.shape)
        new = (param, m_codes, v_codes, m_scale, v_scale)
        old = (self.param, self.m, self.v, self.m_scale, self.v_scale)
        first, second, third, fourth, fifth = map(self.due, new, old)
        return first, second, third, fourth, fifth

    def fake(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Shape rule: the parameter, codes of its shape, and one scale for each block of its last axis."""
        self.fits((self.param, self.m, self.v), self.grad, self.lr, self.group)
        shape, blocks = tuple(self.param.shape), tuple(self.m_scale.shape)
        fitting = len(blocks) == len(shape) > 0 and blocks[:-1] == shape[:-1] and blocks == tuple(self.v_scale.shape)
        if not fitting or shape[-1] % (blocks[-1] * LANES):
            raise ValueError(f"scales {blocks} are not of blocks of a multiple of {LANES} elements of {shape}")
        codes = [self.param.new_empty(shape, dtype=torch.uint8) for _ in range(2)]
        return (
            self.param.new_empty(shape),
            codes[0],
            codes[1],
            self.param.new_empty(blocks),
            self.param.new_empty(blocks),
        )

    def te_old_moments(self, i: tuple[Any, ...]) -> tuple[Any, Any]:
        """Loop nest: element ``i`` of the moments before the update."""
        block = self._block_of(i)
        return (
            MEAN.te_decoded(self.m[i], self.m_scale[block]),
            SQUARE.te_decoded(self.v[i], self.v_scale[block]),
        )

    def te_coded(self, change: Callable[[Any, Any, tuple[Any, ...]], Any]) -> tuple[te.Tensor, ...]:
        """Loop nest: the largest moments of each block, then one that overwrites parameter and codes, then the scales.

        Args:
            change: what is taken from element ``i`` of the parameter, of its new moments and ``i``.
        """
        shape = _extents(self.param)
        new = [self._te_new(kind) for kind in range(2)]
        largest = [self._te_largest(kind, new[kind]) for kind in range(2)]
        inverses = [self._te_inverse(kind, largest[kind]) for kind in range(2)]
        places, numbers = self._te_random()

        def updated(*i: Any) -> Any:
            block = self._block_of(i)
            random = numbers[block] ^ places[i[-1] % self._length()]
            m, v = (CODES[kind].te_encoded(new[kind][i], inverses[kind][block], random) for kind in range(2))
            param = self.te_kept(i) - change(new[0][i], new[1][i], i)
            pairs = ((param, self.param[i]), (m, self.m[i]), (v, self.v[i]))
            return tuple(self.te_due(value, old) for value, old in pairs)

        scales = [self._te_scale(kind, largest[kind], old) for kind, old in enumerate((self.m_scale, self.v_scale))]
        return (*te.compute(shape, updated, name=self.name), *scales)

    def _te_new(self, kind: int) -> te.Tensor:
        """Loop nest: a moment after the update."""
        return te.compute(_extents(self.param), lambda *i: self.te_new_moments(i)[kind], name=self._named(kind, "new"))

    def _te_random(self) -> tuple[te.Tensor, te.Tensor]:
        """Loop nest: random numbers of places in a block, and of blocks."""
        blocks, length = _extents(self.m_scale), self._length()
        places = te.compute(
            (length,), lambda i: element_hash_compute(i.astype("uint32"), self.key), name=f"{self.name}_places"
        )

        def number(*b: Any) -> Any:
            return element_hash_compute(uint32(length) + flat_index(b, blocks), self.key)

        return places, te.compute(blocks, number, name=f"{self.name}_numbers")

    def _te_scale(self, kind: int, largest: te.Tensor, old: te.Tensor) -> te.Tensor:
        """Loop nest: the scale of each block where an update is due, else the old one."""
        return te.compute(
            largest.shape,
            lambda *b: self.te_due(CODES[kind].scale(largest[b]), old[b]),
            name=self._named(kind, "scale"),
        )

    def _te_inverse(self, kind: int, largest: te.Tensor) -> te.Tensor:
        """Loop nest: what new moments are multiplied with to be encoded, for each block."""
        return te.compute(
            largest.shape, lambda *b: CODES[kind].te_inverse(largest[b]), name=self._named(kind, "inverse")
        )

    def _te_largest(self, kind: int, new: te.Tensor) -> te.Tensor:
        """Loop nest: the largest size of a new moment in each block, float32; NaN where one is.

        Bits of floats without a sign are ordered as these are, with NaN behind infinity.
        """
        *rows, count = _extents(self.m_scale)
        length = self._length()
        step, lane = te.reduce_axis((0, length // LANES), "step"), te.reduce_axis((0, LANES), "lane")

        def bits(*i: Any) -> Any:
            *row, block, element = i
            value = new[(*row, block * length + step * LANES + element)]
            return te.max(tirx.reinterpret("uint32", tirx.abs(value) if CODES[kind].signed else value), axis=step)

        partial = te.compute((*rows, count, LANES), bits, name=self._named(kind, "partial"))
        whole = te.compute(
            (*rows, count), lambda *b: te.max(partial[(*b, lane)], axis=lane), name=self._named(kind, "bits")
        )
        least = tirx.reinterpret("uint32", tirx.const(LEAST, "float32"))
        return te.compute(
            (*rows, count),
            lambda *b: tirx.reinterpret("float32", tirx.max(whole[b], least)),
            name=self._named(kind, "largest"),
        )

    def _named(self, kind: int, part: str) -> str:
        return f"{self.name}_{'mv'[kind]}_{part}"

    def _block_of(self, i: tuple[Any, ...]) -> tuple[Any, ...]:
        *row, column = i
        return (*row, column // self._length())

    def _length(self) -> int:
        """The number of elements of a block."""
        return int(self.param.shape[-1]) // int(self.m_scale.shape[-1])

    def onnx_old_moments(self, op: Body) -> tuple[str, str]:
        """ONNX: the moments before the update."""
        m, v = (
            op.reshape(code.onnx_decoded(op, _in_blocks(op, codes, scale), _column(op, scale)), op("Shape", codes))
            for code, codes, scale in ((MEAN, self.m, self.m_scale), (SQUARE, self.v, self.v_scale))
        )
        return m, v

    def onnx_all_kept(self, op: Body, param: str, m: str, v: str) -> tuple[str, str, str, str, str]:
        """ONNX: the parameter, and codes and scales of its moments, where an update is due, else the old ones."""
        random = self._onnx_random(op)
        parts = [
            _onnx_encoded(op, code, values, random, scale)
            for code, values, scale in ((MEAN, m, self.m_scale), (SQUARE, v, self.v_scale))
        ]
        new = (param, parts[0][0], parts[1][0], parts[0][1], parts[1][1])
        old = (self.param, self.m, self.v, self.m_scale, self.v_scale)
        first, second, third, fourth, fifth = (self.onnx_due(op, *pair) for pair in zip(new, old, strict=True))
        return first, second, third, fourth, fifth

    def _onnx_random(self, op: Body) -> str:
        """ONNX: the random numbers of all elements: [blocks, elements] uint32."""
        blocks = op("Size", self.m_scale)
        length = op("Div", op("Size", self.m), blocks)
        places = op.cast(op.range(length), "uint32")
        numbers = op("Add", op.cast(op.range(blocks), "uint32"), op.cast(length, "uint32"))
        of_places, of_blocks = (onnx_element_hash(op, counter, self.key) for counter in (places, numbers))
        return op("BitwiseXor", op.reshape(of_blocks, -1, 1), of_places)


CODES = (MEAN, SQUARE)
"""The codes of both moments."""


def block_length(elements: int) -> int | None:
    """The number of elements of a block in rows of ``elements``: as many as possible; None if no block fits."""
    return next((n for n in range(LONGEST_BLOCK, 0, -LANES) if elements % n == 0), None)


def sample_coded_moments(shape: tuple[int, ...], blocks: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A parameter, its moments as codes and scales, and its gradient, for the samples of an op."""
    param, m, v, grad = sample_moments(shape, generator)
    random = torch.randint(2**32, shape, generator=generator)
    size = (*shape[:-1], blocks)
    m_codes, m_scale = _encoded(MEAN, m, random, size)
    v_codes, v_scale = _encoded(SQUARE, v, random, size)
    return param, m_codes, v_codes, m_scale, v_scale, grad


def _extents(tensor: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in tensor.shape)


def _decoded(code: MomentCode, codes: Tensor, scale: Tensor) -> Tensor:
    return code.decoded(codes.view(*scale.shape, -1), scale.unsqueeze(-1)).flatten(-2)


def _encoded(code: MomentCode, values: Tensor, random: Tensor, blocks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes and scales of ``values`` in ``blocks`` of their last axis."""
    grouped, noise = (tensor.reshape(*blocks, -1) for tensor in (values, random))
    largest = grouped.abs().amax(-1, keepdim=True).clamp(min=LEAST)
    return code.encoded(grouped, largest, noise).flatten(-2), code.scale(largest).squeeze(-1)


def _in_blocks(op: Body, values: str, scale: str) -> str:
    """The values as [blocks, elements]."""
    return op.reshape(values, op("Reshape", op("Size", scale), op.constant([1], "int64")), -1)


def _column(op: Body, scale: str) -> str:
    return op.reshape(scale, -1, 1)


def _onnx_encoded(op: Body, code: MomentCode, values: str, random: str, scale: str) -> tuple[str, str]:
    """Codes and scales of ``values`` in the blocks that ``scale`` has one number for each of."""
    grouped = _in_blocks(op, values, scale)
    sizes = op("ReduceMax", op("Abs", grouped), op.constant([1], "int64"))
    largest = op("Max", sizes, op.constant(LEAST, "float32"))
    codes = op.reshape(code.onnx_encoded(op, grouped, largest, random), op("Shape", values))
    scales = op("Mul", largest, op.constant(1 / code.range, "float32"))
    return codes, op.reshape(scales, op("Shape", scale))
