"""The peak of tile registers (AMX): a loop of loads and products on operands in the first-level cache."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.targets import script
from fqt_deploy.targets.cpu.products.tile_registers.registers import (
    SIGNED_ROWS,
    TILE,
    TILE_DEPTH,
    TILE_ROWS,
    clear_sums,
    configure_tiles,
    multiply_two_by_two,
    release_tiles,
    request_tiles,
    store_sums,
)
from fqt_deploy.targets.registry import make_target

PAIRS, LOOPS = 2, 20_000
"""Pairs of tiles of either operand, four KiB of each, and how often a call multiplies them."""


def tile_product(threads: int) -> tuple[Callable[[], object], int]:
    """A run, and its multiply-accumulates: loads as in a product of matrices, of the same tiles again and again."""
    kernel = tvm.compile(tvm.IRModule({"main": tile_kernel(threads)}), make_target("cpu").tvm_target)["main"]
    output = tvm.runtime.empty([threads, 4 * TILE], "int32")
    return lambda: kernel(output), threads * LOOPS * PAIRS * 4 * TILE_ROWS * TILE_ROWS * TILE_DEPTH


def tile_kernel(threads: int) -> tirx.PrimFunc:
    """The scheduled kernel that ``threads`` threads run, each on operands of its own."""

    @script.prim_func(s_tir=True)
    def product(result: T.Buffer((threads, 4 * TILE), "int32")):  # type: ignore[no-untyped-def, valid-type]
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        T.evaluate(request_tiles())
        for thread in T.parallel(threads):
            rows = T.alloc_buffer((PAIRS * 2 * TILE,), "int32")
            columns = T.alloc_buffer((PAIRS * 2 * TILE,), "int32")
            sums = T.alloc_buffer((4 * TILE,), "int32")
            for i in T.serial(PAIRS * 2 * TILE):
                rows[i] = 0x01FF01FF
                columns[i] = 0x0101FFFF
            configure_tiles(TILE_ROWS)
            clear_sums()
            for _, u in T.grid(LOOPS, PAIRS):
                multiply_two_by_two(
                    rows, u * 2 * TILE, u * 2 * TILE + TILE, TILE_DEPTH, columns, u * 2 * TILE, SIGNED_ROWS
                )
            store_sums(sums, 0, 2)
            for i in T.serial(4 * TILE):
                result[thread, i] = sums[i]
            T.evaluate(release_tiles())

    return product.with_attr("tirx.is_scheduled", True)
