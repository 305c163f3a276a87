"""The cache of object code: keyed by all that code comes from, bounded, safe against damage and other processes."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen import kernel_cache as module
from fqt_deploy.codegen import kernel_objects
from fqt_deploy.codegen.kernel_cache import ABANDONED, LIMIT_VARIABLE, KernelCache, kernel_cache
from fqt_deploy.compiler import compile_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target
from fqt_deploy.targets.tuning_log import TunedTile


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels", limit=1000, environment="this")


def test_what_was_written_is_read(cache: KernelCache) -> None:
    path = cache.path(["a", "b"])
    assert cache.read(path) is None
    cache.write(path, b"code")
    assert cache.read(path) == b"code"
    assert [p.name for p in cache.folder.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damage_is_a_miss(cache: KernelCache, damage: bytes) -> None:
    path = cache.path(["a"])
    cache.write(path, b"code")
    path.write_bytes(damage)
    assert cache.read(path) is None
    cache.write(path, b"code")
    assert cache.read(path) == b"code"


def test_keys_tell_everything_apart(cache: KernelCache) -> None:
    other = replace(cache, environment="other")
    paths = [cache.path(["a", "b"]), cache.path(["b", "a"]), cache.path(["ab"]), cache.path(["a", "b", ""])]
    assert len({*paths, other.path(["a", "b"])}) == 5


def test_the_environment_holds_target_tiles_and_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    monkeypatch.setattr(module, "_STARTED", float("inf"))
    module._compiler_sources.cache_clear()
    target = make_target("cpu", CpuOptions(mcpu="x86-64-v2"))
    tile = TunedTile(target.features.mcpu, "BinaryConv2dRule", "kernel", (1, 2), 1, 1.0, 2.0)
    targets = [
        target,
        make_target("cpu", CpuOptions(mcpu="x86-64-v3")),
        target.with_tiles([tile]),
        target.with_tiles([replace(tile, tile=(2, 1))]),
        replace(target, rules=target.rules[1:]),
        replace(target, features=replace(target.features, vector_registers=7)),
    ]
    caches = [kernel_cache(t) for t in targets]
    assert all(found is not None for found in caches)
    assert len({found.environment for found in caches if found is not None}) == len(targets)
    assert caches[0] == kernel_cache(make_target("cpu", CpuOptions(mcpu="x86-64-v2")))
    assert caches[0] is not None
    assert (caches[0].folder, caches[0].limit) == (tmp_path / "fqt-deploy" / "kernels", 3 * 2**20)


def test_sources_that_changed_since_the_start_switch_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    monkeypatch.setattr(module, "_STARTED", 0.0)
    module._compiler_sources.cache_clear()
    try:
        assert kernel_cache(make_target("cpu")) is None
    finally:
        module._compiler_sources.cache_clear()


@pytest.mark.parametrize("text", ["-1", "1.5", "many", " 1", "²"])
def test_a_limit_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(FqtError, match=LIMIT_VARIABLE) as error:
        kernel_cache(make_target("cpu"))
    assert error.value.code == "FQT202"


def test_zero_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert kernel_cache(make_target("cpu")) is None


def test_what_was_not_read_for_longest_goes_first(cache: KernelCache) -> None:
    paths = [cache.path([str(i)]) for i in range(10)]
    for i, path in enumerate(paths):
        cache.write(path, bytes(68))  # 100 bytes with the digest: as many as the limit
        os.utime(path, (i, i))
    cache.trim()
    assert len(list(cache.folder.iterdir())) == 10
    cache.read(paths[0])
    cache.write(cache.path(["more"]), bytes(68))
    cache.trim()
    assert set(cache.folder.iterdir()) == {paths[0], *paths[4:], cache.path(["more"])}


def test_what_killed_processes_left_is_removed(cache: KernelCache) -> None:
    cache.write(cache.path(["a"]), b"code")
    for name, age in ((".old", ABANDONED + 60), (".new", 0)):
        (cache.folder / name).write_bytes(b"part")
        now = (cache.folder / name).stat().st_mtime
        os.utime(cache.folder / name, (now - age, now - age))
    cache.trim()
    assert {p.name for p in cache.folder.iterdir()} == {cache.path(["a"]).name, ".new"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = KernelCache(tmp_path / "file" / "kernels", limit=1000, environment="this")
    cache.write(cache.path(["a"]), b"code")
    cache.trim()
    assert cache.read(cache.path(["a"])) is None


def _write_and_read(cache: KernelCache, own: int) -> bool:
    """Write the same entries as another process, again and again, and read only whole ones."""
    content = [bytes([i]) * 5000 for i in range(8)]
    fine = True
    for turn in range(60):
        i = (turn + own) % 8
        cache.write(cache.path([str(i)]), content[i])
        cache.trim()
        found = cache.read(cache.path([str((i + 3) % 8)]))
        fine = fine and found in (None, content[(i + 3) % 8])
    return fine


def test_two_processes_share_it(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "kernels", limit=25_000, environment="this")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_write_and_read, [(cache, 0), (cache, 4)]) == [True, True]
    cache.trim()
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.limit


def test_a_second_compilation_is_the_same_without_its_kernels(
    digits_source: ModelSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT_VARIABLE, "50")
    monkeypatch.setattr(module, "_STARTED", float("inf"))
    module._compiler_sources.cache_clear()
    options = CompileOptions(recipe="psq-1")
    libraries = []
    for name in ("first", "second"):
        output = compile_model(digits_source, options, tmp_path / name).output
        libraries.append((output / "step.so").read_bytes())
        assert list((tmp_path / "fqt-deploy" / "kernels").iterdir())
        monkeypatch.setattr(kernel_objects, "_compile_batch", None)
    assert libraries[0] == libraries[1]
    with pytest.raises(TypeError):  # other options need other kernels
        compile_model(digits_source, replace(options, recipe="none"), tmp_path / "other")
