"""Products of bytes in Intel's tile registers (AMX), and the bytes that bits become for them.

A tile holds 16 rows of 64 bytes. One instruction adds the product of a tile of rows [16, 64 bytes] and a tile of
columns [16 x 4 bytes, 16] to a tile of sums [16, 16] int32: 16,384 multiply-accumulates in 16 cycles, three times as
many as xor and popcount do. Codes of up to 8 bits cost no more than single bits, and a padded position is a zero byte.

Registers 0 to 3 are sums, of two tiles of rows with two of columns, or one with four; 4 and 5 are rows, 6 and 7
columns.

Bits become bytes four at a time: four bits of a word choose one of sixteen 32-bit lanes of a table. A row of 64 bytes
is made of two words and holds the first four bits of one, the first four of the other, the next four of the first, and
so on; columns are made in the same order, which is all that a sum over them needs.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script

TILE_ROWS = 16
TILE_LANES = 16
"""Number of 32-bit lanes in a row: four bytes of a product's rows, one of its sums."""
TILE_DEPTH = 64
"""Number of bytes in a row of a tile: how many products one instruction adds up for each sum."""
TILE = TILE_ROWS * TILE_LANES
"""Number of 32-bit lanes in a tile."""
MAXIMUM_BITS = 8
"""A code is a byte."""
SIGNED_ROWS, UNSIGNED_ROWS = "tdpbssd", "tdpbusd"
"""Instructions that multiply rows of signed or unsigned bytes with columns of signed bytes."""
UNSIGNED = "tdpbuud"
"""The instruction that multiplies unsigned bytes with unsigned bytes."""
_LOW_BITS = 0x01010101
_SYSCALL_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def request_tiles() -> Any:
    """Ask Linux for the tile registers, which a process gets on request only; asking again costs next to nothing."""
    arguments = (_SYSCALL_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return T.call_extern("int64", "syscall", *(tirx.const(a, "int64") for a in arguments))


def _tile(name: str, *operands: Any) -> Any:
    registers = [tirx.const(o, "int8") if isinstance(o, int) else o for o in operands]
    return T.call_llvm_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}"), *registers, dtype="int32")


def load_tile(register: int, address: Any, row_bytes: Any) -> Any:
    """A load of a tile: its rows are read from ``address`` on, ``row_bytes`` apart."""
    return _tile("tileloadd64", register, address, T.cast(row_bytes, "int64"))


def store_tile(register: int, address: Any, row_bytes: Any) -> Any:
    """A store of a tile: its rows are written from ``address`` on, ``row_bytes`` apart."""
    return _tile("tilestored64", register, address, T.cast(row_bytes, "int64"))


@script.macro
def configure_tiles(rows: Any) -> None:
    """Shape all registers of this thread: ``rows`` rows in tiles of rows and of sums, 16 in tiles of columns."""
    shapes = T.alloc_buffer((64,), "int8")
    for i in T.serial(64):
        shapes[i] = T.int8(0)
    shapes[0] = T.int8(1)
    for i in T.unroll(8):
        shapes[16 + 2 * i] = T.int8(TILE_DEPTH)
    for i in T.unroll(6):
        shapes[48 + i] = T.cast(rows, "int8")
    for i in T.unroll(2):
        shapes[54 + i] = T.int8(TILE_ROWS)
    T.evaluate(_tile("ldtilecfg", T.address_of(shapes[0])))


def release_tiles() -> Any:
    """Leave the registers empty: the thread's state is small again when the system saves it."""
    return _tile("tilerelease")


@script.macro
def clear_sums() -> None:
    """Set all four tiles of sums to zero."""
    T.evaluate(_tile("tilezero", 0))
    T.evaluate(_tile("tilezero", 1))
    T.evaluate(_tile("tilezero", 2))
    T.evaluate(_tile("tilezero", 3))


def sums_offset(tile: Any, panels: int) -> Any:
    """The place of a tile's sums among those of four: columns of a row of ``panels`` tiles are neighbours."""
    return tile // panels * panels * TILE + tile % panels * TILE_LANES


@script.macro
def load_sums(buffer: Any, at: Any, panels: Any) -> None:
    """Load four tiles of sums, one or two tiles of rows by ``panels`` of columns, from ``buffer``."""
    T.evaluate(load_tile(0, T.address_of(buffer[at + sums_offset(0, panels)]), TILE_DEPTH * panels))
    T.evaluate(load_tile(1, T.address_of(buffer[at + sums_offset(1, panels)]), TILE_DEPTH * panels))
    T.evaluate(load_tile(2, T.address_of(buffer[at + sums_offset(2, panels)]), TILE_DEPTH * panels))
    T.evaluate(load_tile(3, T.address_of(buffer[at + sums_offset(3, panels)]), TILE_DEPTH * panels))


@script.macro
def store_sums(buffer: Any, at: Any, panels: Any) -> None:
    """Store four tiles of sums, one or two tiles of rows by ``panels`` of columns, to ``buffer``."""
    T.evaluate(store_tile(0, T.address_of(buffer[at + sums_offset(0, panels)]), TILE_DEPTH * panels))
    T.evaluate(store_tile(1, T.address_of(buffer[at + sums_offset(1, panels)]), TILE_DEPTH * panels))
    T.evaluate(store_tile(2, T.address_of(buffer[at + sums_offset(2, panels)]), TILE_DEPTH * panels))
    T.evaluate(store_tile(3, T.address_of(buffer[at + sums_offset(3, panels)]), TILE_DEPTH * panels))


@script.macro
def multiply_two_by_two(
    rows: Any, first: Any, second: Any, row_bytes: Any, columns: Any, at: Any, instruction: Any
) -> None:
    """Add two tiles of rows times two tiles of columns to the sums; each load is between products that do not need it.

    Args:
        rows: buffer of the rows.
        first: where in it the first tile begins.
        second: where in it the second tile begins.
        row_bytes: distance of rows.
        columns: buffer of two consecutive tiles of columns.
        at: where they begin.
        instruction: ``SIGNED_ROWS`` or ``UNSIGNED_ROWS``.
    """
    T.evaluate(load_tile(6, T.address_of(columns[at]), TILE_DEPTH))
    T.evaluate(load_tile(4, T.address_of(rows[first]), row_bytes))
    T.evaluate(_tile(instruction, 0, 4, 6))
    T.evaluate(load_tile(7, T.address_of(columns[at + TILE]), TILE_DEPTH))
    T.evaluate(_tile(instruction, 1, 4, 7))
    T.evaluate(load_tile(5, T.address_of(rows[second]), row_bytes))
    T.evaluate(_tile(instruction, 2, 5, 6))
    T.evaluate(_tile(instruction, 3, 5, 7))


@script.macro
def multiply_one_by_four(rows: Any, first: Any, row_bytes: Any, columns: Any, at: Any, instruction: Any) -> None:
    """Add one tile of rows times four tiles of columns to the sums."""
    T.evaluate(load_tile(4, T.address_of(rows[first]), row_bytes))
    T.evaluate(load_tile(6, T.address_of(columns[at]), TILE_DEPTH))
    T.evaluate(_tile(instruction, 0, 4, 6))
    T.evaluate(load_tile(7, T.address_of(columns[at + TILE]), TILE_DEPTH))
    T.evaluate(_tile(instruction, 1, 4, 7))
    T.evaluate(load_tile(6, T.address_of(columns[at + 2 * TILE]), TILE_DEPTH))
    T.evaluate(_tile(instruction, 2, 4, 6))
    T.evaluate(load_tile(7, T.address_of(columns[at + 3 * TILE]), TILE_DEPTH))
    T.evaluate(_tile(instruction, 3, 4, 7))


def _lanes() -> Any:
    return tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), TILE_LANES)


def _splat(value: int) -> Any:
    return tirx.Broadcast(tirx.const(value, "int32"), TILE_LANES)


def bits_table(plane: int = 0) -> Any:
    """A table of sixteen lanes: lane ``e`` holds the four bits of ``e`` as four bytes, 0 or ``2 ** plane``."""
    bits = (_lanes() * _splat(0x00204081)) & _splat(_LOW_BITS)
    return bits << _splat(plane) if plane else bits


def signs_table() -> Any:
    """A table of sixteen lanes: lane ``e`` holds the four bits of ``e`` as four bytes, -1 or 1."""
    byte = T.reinterpret(bits_table(), dtype="int8x64")
    ones = tirx.Broadcast(tirx.const(1, "int8"), TILE_DEPTH)
    return T.reinterpret(byte + byte - ones, dtype="int32x16")


def look_up(table: Any, indices: Any) -> Any:
    """The lanes of ``table`` that the low four bits of each lane of ``indices`` name."""
    name = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.permvar.si.512")
    return T.call_llvm_pure_intrin(name, table, indices, dtype="int32x16")


def neighbours(low: Any, high: Any | None) -> Any:
    """Two packed words as one of 64 bits; the second may be missing."""
    wide = [T.cast(T.reinterpret(word, dtype="uint32"), "int64") for word in (low, high) if word is not None]
    return wide[0] if high is None else wide[0] | (wide[1] << T.int64(32))


def row_indices(pair: Any) -> Any:
    """Indices for a row of a tile: the lowest four bits of lane ``l`` are bits ``4 l`` on of the int64 ``pair``."""
    both = T.reinterpret(tirx.Broadcast(pair, 8), dtype="int32x16")
    return both >> ((_lanes() >> _splat(1)) << _splat(2))


def column_indices(words: Any, lane: Any) -> Any:
    """Indices for row ``2 * lane`` or ``2 * lane + 1`` of a tile of columns: four bits of each of sixteen words."""
    return words >> tirx.Broadcast(4 * lane, TILE_LANES)


def column_row_of_weight(planes: list[Any], lane: Any) -> Any:
    """Row ``2 * lane`` or ``2 * lane + 1`` of a tile of columns: signs, or the levels of several planes."""
    if len(planes) == 1:
        return look_up(signs_table(), column_indices(planes[0], lane))
    return signed_levels(column_row_of_codes(planes, lane), (1 << len(planes)) - 1)


def signed_levels(codes: Any, largest: int) -> Any:
    """Twice each byte less the largest code, in sixteen lanes of four bytes."""
    octets = T.reinterpret(codes, dtype="int8x64")
    doubled = octets + octets - tirx.Broadcast(tirx.const(largest, "int8"), 64)
    return T.reinterpret(doubled, dtype="int32x16")


def row_of_codes(planes: list[Any]) -> Any:
    """A row of unsigned codes from two words, an int64, of each bit-plane, lowest first."""
    return codes_of_planes([row_indices(pair) for pair in planes])


def codes_of_planes(indices: list[Any]) -> Any:
    """Unsigned codes, a byte each, from the indices of each bit-plane, lowest first."""
    total: Any = None
    for number, lanes in enumerate(indices):
        plane = look_up(bits_table(number), lanes)
        total = plane if total is None else total | plane
    return total


def column_row_of_codes(planes: list[Any], lane: Any) -> Any:
    """Row ``2 * lane`` or ``2 * lane + 1`` of a tile of columns: codes of four bits of sixteen words by plane."""
    return codes_of_planes([column_indices(words, lane) for words in planes])


@script.macro
def expand_weight_columns(columns: Any, at: Any, low: Any, high: Any) -> None:
    """Write a tile of sixteen columns of a weight from ``at`` on, made of two words of each column and plane."""
    for lane in T.unroll(8):
        columns[T.ramp(at + 2 * lane * TILE_LANES, 1, TILE_LANES)] = column_row_of_weight(low, lane)
        columns[T.ramp(at + (2 * lane + 1) * TILE_LANES, 1, TILE_LANES)] = column_row_of_weight(high, lane)


@script.macro
def expand_code_columns(columns: Any, at: Any, low: Any, high: Any) -> None:
    """Write a tile of sixteen columns of codes from ``at`` on, made of two words of each column and plane."""
    for lane in T.unroll(8):
        columns[T.ramp(at + 2 * lane * TILE_LANES, 1, TILE_LANES)] = column_row_of_codes(low, lane)
        columns[T.ramp(at + (2 * lane + 1) * TILE_LANES, 1, TILE_LANES)] = column_row_of_codes(high, lane)
