"""A compiled step that computes keys, values and sums again in backward has the losses of one that keeps them."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes import recompute_kept
from fqt_deploy.runtime import load
from tests.passes.test_recompute_kept import Attending

pytestmark = pytest.mark.thorough


def test_losses_are_equal_bit_for_bit(tmp_path, monkeypatch):
    x, y = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    losses = []
    for smallest in (1 << 40, 0):
        monkeypatch.setattr(recompute_kept, "SMALLEST", smallest)
        torch.manual_seed(0)
        source = ModelSource(Attending(), nn.functional.cross_entropy, (x, y))
        compiled = compile_model(source, CompileOptions(agp="tokens"), tmp_path / str(smallest))
        again = [k for k in compiled.manifest.kernels if k.op == "level_conv2d" and k.phase == "backward"]
        assert bool(again) == (smallest == 0)
        session = load(compiled.output)
        losses.append([session.step(x.numpy(), y.numpy()) for _ in range(6)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]
