"""Kernels compiled apart are complete, in the same batches every time, and found in the linked library."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from tvm import te, tirx

from fqt_deploy.codegen.build import build_functions, export_library
from fqt_deploy.codegen.kernel_objects import LARGEST_BATCH, KernelSources, compiling, split_kernels
from fqt_deploy.core.file_cache import FileCache
from fqt_deploy.targets.registry import make_target


def _names(count: int) -> list[str]:
    """Names as kernels have them: an op and a digest."""
    return [f"add_{i}_{hashlib.sha256(str(i).encode()).hexdigest()[:8]}" for i in range(count)]


def _adds(symbol: str) -> tirx.PrimFunc:
    """``y = x + number`` for one float32, with the number in the symbol."""
    x = te.placeholder((1,), "float32", name="x")
    y = te.compute((1,), lambda i: x[i] + tirx.const(float(symbol.split("_")[1]), "float32"), name="y")
    return te.create_prim_func([x, y]).with_attrs({"global_symbol": symbol, "fqt.op": "add", "fqt.outputs": 1})


def _sources(
    count: int, cache: FileCache | None = None, made: list[str] | None = None, small: int = 0
) -> KernelSources:
    """The kernels ``_names(count)``, the first of them ``small``; ``made`` is told which loop nests are made here."""

    def function(symbol: str) -> tirx.PrimFunc:
        if made is not None:
            made.append(symbol)
        return _adds(symbol)

    target = make_target("cpu")
    texts = {name: f"text of {name}" for name in _names(count)}
    return KernelSources(texts, function, target, cache, frozenset(_names(small)))


def _library(kernels: KernelSources, folder: Path) -> tvm.runtime.Module:
    folder.mkdir(exist_ok=True)
    empty = build_functions({"nothing": kernels.target.schedule(_adds("add_0"))}, kernels.target.tvm_target)
    with compiling(kernels, folder) as objects:
        export_library(empty, folder / "all.so", kernels.target, [o.result() for o in objects])
    return tvm_ffi.load_module(str(folder / "all.so"))


def _sums(library: tvm.runtime.Module, count: int) -> list[float]:
    """What each kernel makes of 0.5."""
    x, y = (tvm.runtime.empty((1,), "float32") for _ in range(2))
    found = []
    for name in _names(count):
        x.copyfrom([0.5])
        library[name](x, y)
        found.append(float(y.numpy()[0]))
    return found


@pytest.mark.parametrize("count", [0, 1, 30, 200])
def test_batches_partition_the_kernels(count: int) -> None:
    names = _names(count)
    batches = split_kernels(reversed(names))
    assert [n for batch in batches for n in batch] == sorted(names)
    assert all(0 < len(batch) <= LARGEST_BATCH for batch in batches)


def test_one_kernel_more_changes_one_batch() -> None:
    before, after = (set(split_kernels(_names(count))) for count in (200, 201))
    assert len(before) > 10
    assert len(before - after) <= 1


@pytest.mark.parametrize("count", [1, 40])
def test_objects_link_into_one_library(tmp_path: Path, count: int) -> None:
    assert _sums(_library(_sources(count), tmp_path), count) == [0.5 + i for i in range(count)]


def test_small_kernels_have_batches_of_their_own(tmp_path: Path) -> None:
    sources = _sources(40, small=15)
    batches = sources.batches()
    assert sorted(name for batch in batches for name in batch) == sorted(_names(40))
    assert all(len({name in sources.small for name in batch}) == 1 for batch in batches)
    assert _sums(_library(sources, tmp_path), 40) == [0.5 + i for i in range(40)]


def test_small_kernels_are_cached_as_such(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 2**20, ".kernels", "this")
    _library(_sources(1, cache), tmp_path / "first")
    made: list[str] = []
    _library(_sources(1, cache, made, small=1), tmp_path / "second")
    assert made == _names(1)


def test_code_in_the_cache_is_not_made_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 2**20, ".kernels", "this")
    first = _library(_sources(40, cache), tmp_path / "first")
    made: list[str] = []
    second = _library(_sources(40, cache, made), tmp_path / "second")
    assert made == []
    assert _sums(first, 40) == _sums(second, 40) == [0.5 + i for i in range(40)]


def test_damaged_code_is_made_again(tmp_path: Path) -> None:
    cache = FileCache(tmp_path / "cache", 2**20, ".kernels", "this")
    _library(_sources(40, cache), tmp_path / "first")
    damaged = sorted(cache.folder.iterdir())[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    made: list[str] = []
    assert _sums(_library(_sources(40, cache, made), tmp_path / "second"), 40) == [0.5 + i for i in range(40)]
    assert 0 < len(made) <= LARGEST_BATCH
    content[len(content) // 2] ^= 1
    assert damaged.read_bytes()[:32] == bytes(content[:32])


def test_a_failure_in_the_block_is_what_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="linker"), compiling(_sources(40), tmp_path):
        raise RuntimeError("linker")
