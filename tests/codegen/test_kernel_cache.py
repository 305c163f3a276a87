"""The cache of object code: keyed by all that code comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen import kernel_objects
from fqt_deploy.codegen.kernel_cache import LIMIT_VARIABLE, kernel_cache
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core import file_cache
from fqt_deploy.core.file_cache import compiler_sources
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target
from fqt_deploy.targets.tuning_log import TunedTile


def test_the_environment_holds_target_tiles_and_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT_VARIABLE, "3")
    monkeypatch.setattr(file_cache, "_STARTED", float("inf"))
    compiler_sources.cache_clear()
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


def test_zero_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert kernel_cache(make_target("cpu")) is None


def test_a_second_compilation_is_the_same_without_its_kernels(
    loop_source: ModelSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(LIMIT_VARIABLE, "50")
    monkeypatch.setattr(file_cache, "_STARTED", float("inf"))
    compiler_sources.cache_clear()
    options = CompileOptions(recipe="psq-1", optimizer=SGD())
    libraries = []
    for name in ("first", "second"):
        output = compile_model(loop_source, options, tmp_path / name).output
        libraries.append((output / "step.so").read_bytes())
        assert list((tmp_path / "fqt-deploy" / "kernels").iterdir())
        monkeypatch.setattr(kernel_objects, "_compile_batch", None)
    assert libraries[0] == libraries[1]
    with pytest.raises(TypeError):  # other options need other kernels
        compile_model(loop_source, replace(options, recipe="none"), tmp_path / "other")
