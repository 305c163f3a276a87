"""A second compilation of the same model copies the first; whatever differs compiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.build_cache.build_artifact import LIMIT_VARIABLE, Build, build_artifact
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.core import file_cache
from fqt_deploy.core.file_cache import compiler_sources
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.watched_files import watched_files

MODEL = """
from pathlib import Path
import torch
from torch import nn

SCALE = float(Path(__file__).with_name("scale.txt").read_text())

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x) * SCALE

def build_model():
    return Model()

def example_inputs():
    return torch.arange(8.0).reshape(2, 4), torch.tensor([0, 2])
"""
OPTIONS = CompileOptions(recipe="none")


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A build cache of its own, and a cache of kernels beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(LIMIT_VARIABLE, "50")
    monkeypatch.setattr(file_cache, "_STARTED", float("inf"))
    monkeypatch.setenv("FQT_KERNEL_CACHE", "50")
    compiler_sources.cache_clear()
    return tmp_path / "cache" / "fqt-deploy" / "builds"


@pytest.fixture
def build(cached: Path, model_file: Callable[[str], Path], tmp_path: Path) -> Callable[..., Build]:
    """Compiles the model file, with a scale."""

    def run(name: str, *, scale: str = "2", text: str = MODEL, options: CompileOptions = OPTIONS) -> Build:
        if not (tmp_path / "scale.txt").exists() or (tmp_path / "scale.txt").read_text() != scale:
            (tmp_path / "scale.txt").write_text(scale)
        if not (tmp_path / "model.py").exists() or (tmp_path / "model.py").read_text() != text:
            model_file(text)
        with watched_files() as read:
            source = load_model(tmp_path / "model.py")
        return build_artifact(source, options, tmp_path / name, read=read)

    return run


def _losses(build: Build) -> list[float]:
    session = fqt_deploy.load(build.output)
    x, y = torch.arange(8.0).reshape(2, 4).numpy(), torch.tensor([0, 2]).numpy()
    return [float(session.step(x, y)) for _ in range(3)]


def test_the_same_again_is_copied(build: Callable[..., Build], cached: Path) -> None:
    first, second = build("first.fqt"), build("second.fqt")
    assert first.compiled is not None
    assert second.compiled is None
    names = {path.relative_to(first.output) for path in first.output.rglob("*") if path.is_file()}
    assert all((first.output / name).read_bytes() == (second.output / name).read_bytes() for name in names)
    assert (first.manifest, first.notes) == (second.manifest, second.notes)
    assert _losses(first) == _losses(second)
    [entry] = cached.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    assert build("third.fqt").compiled is not None  # a damaged entry is none


@pytest.mark.thorough
def test_whatever_differs_compiles(build: Callable[..., Build]) -> None:
    first = build("first.fqt")
    other = build("other.fqt", scale="0.5")  # the text is the same: a file that it reads is not
    assert other.compiled is not None
    assert _losses(other) != _losses(first)
    assert build("seed.fqt", scale="0.5", options=CompileOptions(recipe="none", seed=1)).compiled is not None
    assert build("text.fqt", scale="0.5", text=MODEL.replace("* SCALE", "+ SCALE")).compiled is not None
    assert build("again.fqt", scale="0.5", text=MODEL.replace("* SCALE", "+ SCALE")).compiled is None


def test_what_only_a_compilation_shows_is_compiled(build: Callable[..., Build]) -> None:
    build("first.fqt")
    checked = build("checked.fqt", options=CompileOptions(recipe="none", verify="numerics"))
    assert checked.compiled is not None
    assert checked.compiled.verification is not None


def test_the_python_interface_compiles_once(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 4), torch.tensor([0, 1]))
    first = fqt_deploy.compile(model, example_inputs=batch, recipe="none")
    monkeypatch.setattr("fqt_deploy.compiler.compile_model.lower_model", None)
    second = fqt_deploy.compile(model, example_inputs=batch, recipe="none")
    assert [float(first(*batch)) for _ in range(3)] == [float(second(*batch)) for _ in range(3)]
    with pytest.raises(TypeError):  # nothing but the cache could answer
        fqt_deploy.compile(model.double().float().eval(), example_inputs=batch, recipe="none")
