"""Measure the tiles that schedule rules offer, on this machine, for the kernels of one program."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from fqt_deploy.codegen.build import build_functions
from fqt_deploy.codegen.to_relax import RelaxProgram
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.base import Target, TunableRule
from fqt_deploy.targets.tuning_log import Tile, TunedTile, kernel_signature

ROUNDS = 20
"""Number of calls of every candidate, which take turns; the fastest call counts, because machines are disturbed, never
helped.
"""
WORTH = 0.97
"""A tile replaces the default where it takes at most this part of its time."""


def tune_tiles(program: RelaxProgram, target: Target, threads: int, tell: Callable[[str], None]) -> list[TunedTile]:
    """The best tile of every kernel of ``program`` for which ``target`` knows none yet.

    Args:
        program: kernels as ``to_relax`` makes them, not scheduled.
        target: what they are for: this machine.
        threads: that kernels run on, for the record.
        tell: told what is measured.

    Raises:
        FqtError: FQT202 if the target is not this machine.
        AssertionError: if a tile changes the result.
    """
    check_can_tune(target)
    kernels = [f for f in program.module.functions.values() if isinstance(f, tirx.PrimFunc)]
    wanted: dict[tuple[str, str], tuple[TunableRule, tirx.PrimFunc, tuple[Tile, ...]]] = {}
    for kernel in kernels:
        tunable = target.tunable_rule(kernel)
        if tunable is not None:
            rule, choice = tunable
            key = (choice.form, kernel_signature(kernel))
            if len(choice.tiles) > 1 and key not in target.tuned:
                wanted[key] = (rule, kernel, choice.tiles)
    found = []
    for number, ((form, signature), (rule, kernel, tiles)) in enumerate(wanted.items(), start=1):
        tell(f"measuring {len(tiles)} tiles of {kernel.attrs['fqt.op']} ({number} of {len(wanted)})")
        seconds = _measure({tile: rule.apply(kernel, target.features, tile) for tile in tiles}, target)
        default, best = tiles[0], min(tiles, key=lambda tile: seconds[tile])
        chosen = best if seconds[best] <= WORTH * seconds[default] else default
        microseconds = (round(1e6 * seconds[tile], 1) for tile in (chosen, default))
        found.append(TunedTile(target.features.mcpu, form, signature, chosen, threads, *microseconds))
    return found


def check_can_tune(target: Target) -> None:
    """FQT202 if kernels for ``target`` do not run here, or have no tiles to choose from."""
    if not target.toolchain.is_native or not any(isinstance(rule, TunableRule) for rule in target.rules):
        raise FqtError(
            f"--tune measures on the machine it runs on, and target {target.name} is another one",
            code="FQT202",
            hint="compile with --tune there; its tuning log can be used here",
        )


def _measure(candidates: Mapping[Tile, Any], target: Target) -> dict[Tile, float]:
    """Seconds of one call of each candidate; all must compute the same."""
    names = {tile: "tile_" + "_".join(map(str, tile)) for tile in candidates}
    library = build_functions({names[tile]: kernel for tile, kernel in candidates.items()}, target.tvm_target)
    generator = np.random.default_rng(0)
    parameters = next(iter(candidates.values())).params
    arrays = [
        generator.integers(0, 256, [*(int(d) for d in p.shape), np.dtype(str(p.dtype)).itemsize], dtype=np.uint8)
        .view(str(p.dtype))
        .reshape([int(d) for d in p.shape])
        for p in parameters
    ]
    operands = [tvm.runtime.tensor(array) for array in arrays]
    results = set()
    for name in names.values():
        library[name](*operands)
        results.add(operands[-1].numpy().tobytes())
    assert len(results) == 1, f"tiles {list(candidates)} differ in their results"
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS):
        for tile, name in names.items():
            start = time.perf_counter()
            library[name](*operands)
            seconds[tile] = min(seconds[tile], time.perf_counter() - start)
    return seconds
