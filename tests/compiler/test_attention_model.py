"""End to end: attention with dropout, a learned bias and repeated keys compiles, kernel by kernel, and trains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target

BATCH, LENGTH, WIDTH, HEADS, DEPTH = 8, 19, 32, 4, 8


class Block(nn.Module):
    """Four heads of queries for two of keys, with positions that are learned among the scores."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout, self.norm = dropout, nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)
        self.bias = nn.Parameter(torch.randn(HEADS, LENGTH, LENGTH) / 4)

    def forward(self, x):
        normed = self.norm(x)
        q, k, v = (f(normed).unflatten(2, (-1, DEPTH)).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (y.repeat_interleave(2, dim=1) for y in (k, v))
        weights = ((q @ k.transpose(2, 3)) * DEPTH**-0.5 + self.bias).softmax(-1)
        attended = F.dropout(weights, self.dropout, self.training) @ v
        return x + self.out(attended.transpose(1, 2).flatten(2))


def source_of(dropout):
    torch.manual_seed(0)
    model = nn.Sequential(Block(dropout), Block(dropout), nn.Flatten(), nn.Linear(LENGTH * WIDTH, 3))
    return ModelSource(model, F.cross_entropy, (torch.randn(BATCH, LENGTH, WIDTH), torch.arange(BATCH) % 3))


@pytest.mark.quick
@pytest.mark.parametrize("recipe", [{"recipe": "none"}, {"agp": "sampled"}, {"agp": "once"}], ids=str)
def test_every_kernel_agrees_with_pytorch(tmp_path, recipe):
    options = CompileOptions(**recipe, optimizer=fqt_deploy.Adam(lr=1e-3), verify="numerics")
    source = source_of(dropout=0.2)
    result = compile_model(source, options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []
    assert [check for check in result.verification.passes if not check.ok] == []
    names = [kernel.op for kernel in result.manifest.kernels]
    assert [names.count(f"attention{what}") for what in ("", "_backward", "_mask_gradient")] == [2, 2, 2]
    assert "batch_matmul" not in names
    session = fqt_deploy.load(result.output)
    losses = [session.step(*source.example_inputs) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_every_kernel_agrees_on_every_level(tmp_path, level):
    cpu = CpuOptions(mcpu=level)
    try:
        make_target("cpu", cpu)
    except FqtError:
        pytest.skip("this machine cannot run it")
    options = CompileOptions(target_options=cpu, verify="numerics")
    result = compile_model(source_of(dropout=0.2), options, tmp_path / "step")
    assert [row for row in result.verification.rows if not row.ok] == []
