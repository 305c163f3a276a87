"""The good files that damaged ones are made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.targets import cpu
from tools.fuzz.inputs import Good

BATCH = 4


def make_good_files(folder: Path, *, onnx: bool, artifact: Path | None = None) -> Good:
    """Compile a small model, unless ``artifact`` is one already, and write one file of each kind into ``folder``."""
    folder.mkdir(parents=True)
    source, options = _source(), CompileOptions()
    if artifact is None:
        artifact = folder / "step.fqt"
        compile_model(source, options, artifact)
    if onnx:
        export_onnx(source, options, lower_model(source, options), folder / "step.onnx")
    return good_files_of(artifact, folder, folder / "step.onnx" if onnx else None)


def good_files_of(artifact: Path, folder: Path, onnx: Path | None) -> Good:
    """The good files for a compiled step, in ``folder``."""
    session = fqt_deploy.load(artifact)
    x, y = session.manifest.inputs
    samples = np.random.default_rng(0).standard_normal((4 * x.shape[0], *x.shape[1:])).astype(x.dtype)
    np.savez(folder / "data.npz", x=samples, y=np.arange(4 * y.shape[0]) % 10)
    session.step(samples[: x.shape[0]], np.arange(y.shape[0]) % 10)
    session.save_checkpoint(folder / "checkpoint", {"note": "é"})
    state = nn.Linear(3, 2).state_dict()
    torch.save(state, folder / "weights.pt")
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    return Good(
        artifact=artifact,
        checkpoint=folder / "checkpoint",
        data=folder / "data.npz",
        weights=(folder / "weights.pt", folder / "weights.safetensors"),
        onnx=onnx,
        log=Path(cpu.__file__).with_name("tuned_tiles.jsonl"),
    )


def _source() -> ModelSource:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)
    )
    return ModelSource(model, nn.functional.cross_entropy, (torch.randn(BATCH, 1, 8, 8), torch.arange(BATCH)))
