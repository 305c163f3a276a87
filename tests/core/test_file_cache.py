"""Files kept between compilations: keyed by all that they come from, bounded, safe against damage and processes."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fqt_deploy.core import file_cache
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.file_cache import ABANDONED, FileCache, cache_limit, compiler_sources


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path / "kernels", 1000, ".kept", "this")


def test_what_was_written_is_read(cache: FileCache) -> None:
    path = cache.path(["a", "b"])
    assert cache.read(path) is None
    cache.write(path, b"code")
    assert cache.read(path) == b"code"
    assert [p.name for p in cache.folder.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damage_is_a_miss(cache: FileCache, damage: bytes) -> None:
    path = cache.path(["a"])
    cache.write(path, b"code")
    path.write_bytes(damage)
    assert cache.read(path) is None
    cache.write(path, b"code")
    assert cache.read(path) == b"code"


def test_keys_tell_everything_apart(cache: FileCache) -> None:
    other = replace(cache, environment="other")
    paths = [cache.path(["a", "b"]), cache.path(["b", "a"]), cache.path(["ab"]), cache.path(["a", "b", ""])]
    assert len({*paths, other.path(["a", "b"])}) == 5


def test_sources_that_changed_since_the_start_have_no_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "_STARTED", 0.0)
    compiler_sources.cache_clear()
    try:
        assert compiler_sources() is None
    finally:
        compiler_sources.cache_clear()


@pytest.mark.parametrize("text", ["-1", "1.5", "many", " 1", "²"])
def test_a_limit_that_is_no_number_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FQT_SOME_CACHE", text)
    with pytest.raises(FqtError, match="FQT_SOME_CACHE") as error:
        cache_limit("FQT_SOME_CACHE", 1)
    assert error.value.code == "FQT202"


def test_the_limit_is_in_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit("FQT_SOME_CACHE", 3) == 3 * 2**20
    monkeypatch.setenv("FQT_SOME_CACHE", "5")
    assert cache_limit("FQT_SOME_CACHE", 3) == 5 * 2**20


def test_what_would_drive_out_the_others_is_not_kept(cache: FileCache) -> None:
    cache.write(cache.path(["large"]), bytes(501))
    assert cache.read(cache.path(["large"])) is None
    cache.write(cache.path(["half"]), bytes(500))
    assert cache.read(cache.path(["half"])) == bytes(500)


def test_what_was_not_read_for_longest_goes_first(cache: FileCache) -> None:
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


def test_what_killed_processes_left_is_removed(cache: FileCache) -> None:
    cache.write(cache.path(["a"]), b"code")
    for name, age in ((".old", ABANDONED + 60), (".new", 0)):
        (cache.folder / name).write_bytes(b"part")
        now = (cache.folder / name).stat().st_mtime
        os.utime(cache.folder / name, (now - age, now - age))
    cache.trim()
    assert {p.name for p in cache.folder.iterdir()} == {cache.path(["a"]).name, ".new"}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = FileCache(tmp_path / "file" / "kernels", 1000, ".kept", "this")
    cache.write(cache.path(["a"]), b"code")
    cache.trim()
    assert cache.read(cache.path(["a"])) is None


def _write_and_read(cache: FileCache, own: int) -> bool:
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
    cache = FileCache(tmp_path / "kernels", 25_000, ".kept", "this")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.starmap(_write_and_read, [(cache, 0), (cache, 4)]) == [True, True]
    cache.trim()
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= cache.limit
