"""Kernels compiled apart are complete, in the same batches every time, and found in the linked library."""

from __future__ import annotations

from pathlib import Path

import pytest
import tvm_ffi
from tvm import te, tirx

from fqt_deploy.codegen.build import build_functions, export_library
from fqt_deploy.codegen.kernel_objects import BATCH, compiling, split_kernels
from fqt_deploy.targets.registry import make_target


def _adds(number: int) -> tirx.PrimFunc:
    """``y = x + number`` for one float32."""
    x = te.placeholder((1,), "float32", name="x")
    y = te.compute((1,), lambda i: x[i] + tirx.const(float(number), "float32"), name="y")
    return te.create_prim_func([x, y]).with_attrs({"global_symbol": f"add_{number}", "fqt.op": "add", "fqt.outputs": 1})


@pytest.mark.parametrize("count", [0, 1, BATCH, 2 * BATCH - 1, 2 * BATCH, 5 * BATCH + 7])
def test_batches_partition_the_kernels(count: int) -> None:
    names = [f"k{i}" for i in range(count)]
    batches = split_kernels(dict.fromkeys(reversed(names)))  # type: ignore[arg-type]
    assert [n for batch in batches for n in batch] == sorted(names)
    assert all(BATCH <= len(batch) < 2 * BATCH for batch in batches[: count // BATCH])


def test_objects_link_into_one_library(tmp_path: Path) -> None:
    target = make_target("cpu")
    own, *others = split_kernels({f"add_{i}": _adds(i) for i in range(3 * BATCH)})
    assert len(others) == 2
    with compiling(others, target, tmp_path) as objects:
        scheduled = {name: target.schedule(kernel) for name, kernel in own.items()}
        executable = build_functions(scheduled, target.tvm_target)
        export_library(executable, tmp_path / "all.so", target, [o.result() for o in objects])
    library = tvm_ffi.load_module(str(tmp_path / "all.so"))
    assert all(library.get_function(f"add_{i}") is not None for i in range(3 * BATCH))


def test_a_failure_in_the_block_is_what_is_raised(tmp_path: Path) -> None:
    target = make_target("cpu")
    with (
        pytest.raises(RuntimeError, match="linker"),
        compiling(split_kernels({"add_1": _adds(1)}), target, tmp_path),
    ):
        raise RuntimeError("linker")
