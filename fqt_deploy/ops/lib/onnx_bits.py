"""Packed words, panels, random numbers and codes in ONNX, as they are elsewhere in PyTorch and TVM."""

from __future__ import annotations

import numpy as np

from fqt_deploy.ops.lib.counter_random import MULTIPLIERS
from fqt_deploy.ops.lib.onnx_body import Body
from fqt_deploy.ops.lib.packed_words import PANEL, WORD
from fqt_deploy.ops.lib.stochastic_code import FRACTION

_BYTE = np.arange(256)
BITS = (_BYTE[:, None] >> np.arange(8)) & 1
"""The bits of every byte, 0 or 1: [256, 8]."""
SIGNS = 2 * BITS - 1
"""The bits of every byte, -1 or +1: [256, 8]."""
ONES = BITS.sum(1)
"""The number of ones in every byte: [256]."""


def pack(op: Body, bits: str) -> str:
    """The bits packed into words: [..., C] bool -> [..., ceil(C / 32)] int32."""
    count = op.extent(bits, -1)
    word = op.constant([WORD], "int64")
    words = op("Div", op("Add", count, op.constant([WORD - 1], "int64")), word)
    missing = op("Sub", op("Mul", words, word), count)
    padding = op.shape(0, missing)
    integers = op.cast(bits, "int32")
    padded = op("Pad", integers, padding, op.constant(0, "int32"), op.constant([-1], "int64"))
    grouped = op.reshape(padded, op("Shape", bits, end=-1), words, WORD)
    values = [1 << k for k in range(WORD - 1)] + [-(1 << (WORD - 1))]
    return op.sum(op("Mul", grouped, op.constant(values, "int32")), -1)


def table(op: Body, words: str, entries: np.ndarray, dtype: str) -> str:
    """The entry of each byte, lowest first: [...] int32 -> [..., 4, *entries.shape[1:]].

    A table turns eight bits at a time into numbers without a wide integer for each.
    """
    shifts = op.constant([0, 8, 16, 24], "uint32")
    shifted = op("BitShift", op.unsqueeze(op.cast(words, "uint32"), -1), shifts, direction="RIGHT")
    octets = op.cast(op("BitwiseAnd", shifted, op.constant(255, "uint32")), "int32")
    return op("Gather", op.constant(entries, dtype), octets, axis=0)


def unpack(op: Body, words: str, entries: np.ndarray, dtype: str) -> str:
    """The bits of words: [..., W] int32 -> [..., 32 W] of ``dtype``; ``entries`` is ``BITS`` or ``SIGNS``."""
    return op.reshape(table(op, words, entries, dtype), op("Shape", words, end=-1), -1)


def to_panels(op: Body, rows: str) -> str:
    """The rows in panels: [R, W] -> [ceil(R / 16), W, 16]; missing rows are 0."""
    count, panel = op.extent(rows, 0), op.constant([PANEL], "int64")
    above = op("Add", count, op.constant([PANEL - 1], "int64"))
    missing = op("Sub", op("Mul", op("Div", above, panel), panel), count)
    padded = op("Pad", rows, op.shape(0, missing), op.constant(0, "int32"), op.constant([0], "int64"))
    return op("Transpose", op.reshape(padded, -1, PANEL, op.extent(rows, 1)), perm=[0, 2, 1])


def from_panels(op: Body, panels: str, rows: str) -> str:
    """The rows of panels: [P, W, 16] -> [R, W], R = ``rows`` ([1] int64)."""
    flat = op.reshape(op("Transpose", panels, perm=[0, 2, 1]), -1, op.extent(panels, 1))
    return op.front(flat, rows, 0)


def codes_of_planes(op: Body, planes: str, axis: int) -> str:
    """Bits of planes, 0 or 1, float32 -> codes, float32; ``axis`` counts the planes and vanishes."""
    weights = op("Pow", op.constant(2.0, "float32"), op.cast(op.range(op.extent(planes, axis)), "float32"))
    trailing = [1] * (-axis - 1)
    return op.sum(op("Mul", planes, op.reshape(weights, -1, *trailing)), axis)


def planes_of_codes(op: Body, codes: str, bits: str) -> str:
    """The bit-planes of codes: [..., C] uint8 -> [..., B, C] bool, B = ``bits`` ([] int64)."""
    shifts = op.cast(op.reshape(op.range(bits), -1, 1), "uint8")
    shifted = op("BitShift", op.unsqueeze(codes, -2), shifts, direction="RIGHT")
    return op.cast(op("BitwiseAnd", shifted, op.constant(1, "uint8")), "bool")


def element_hash(op: Body, index: str, key: str) -> str:
    """The random numbers of ``counter_random.element_hash``: [...] uint32 and [2] int32 -> [...] uint32."""
    x, words = index, op.cast(key, "uint32")
    for i, multiplier in enumerate(MULTIPLIERS):
        word = op("Gather", words, op.constant(i, "int64"), axis=0)
        x = op("Mul", op("BitwiseXor", x, word), op.constant(multiplier, "uint32"))
        x = op("BitwiseXor", x, shift_right(op, x, 15))
    return x


def shift_right(op: Body, x: str, count: int, dtype: str = "uint32") -> str:
    """The bits of ``x`` shifted right by ``count``."""
    return op("BitShift", x, op.constant(count, dtype), direction="RIGHT")


def rounded(op: Body, value: str, zero: str, reciprocal: str, index: str, key: str, bits: str) -> str:
    """The codes of ``stochastic_code.rounded``, uint8; ``index`` is uint32, ``bits`` a [] int64."""
    above = op("Sub", op("Max", value, zero), zero)
    scaled = op("Mul", above, op("Mul", reciprocal, op.constant(2.0**FRACTION, "float32")))
    fixed = op.cast(op.cast(scaled, "int32"), "uint32")
    noise = shift_right(op, element_hash(op, index, key), 32 - FRACTION)
    code = shift_right(op, op("Add", fixed, noise), FRACTION)
    one = op.constant(1, "uint32")
    largest = op("Sub", op("BitShift", one, op.cast(bits, "uint32"), direction="LEFT"), one)
    return op.cast(op("Min", code, largest), "uint8")
