"""A compiled step that computes keys, values and sums again in backward has the losses of one that keeps them."""

import runpy

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes import recompute_kept
from fqt_deploy.runtime import load
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.toolchain import native_toolchain
from tests.passes.test_recompute_kept import Attending
from tools.examples import EXAMPLES

pytestmark = pytest.mark.thorough


def losses_of(model, batch, options, output):
    torch.manual_seed(0)
    compiled = compile_model(ModelSource(model(), nn.functional.cross_entropy, batch), options, output)
    again = [k for k in compiled.manifest.kernels if k.op == "level_conv2d" and k.phase == "backward"]
    session = load(compiled.output)
    return bool(again), [session.step(*(tensor.numpy() for tensor in batch)) for _ in range(6)]


def both(model, batch, options, folder, monkeypatch):
    """The losses with values kept and with values computed again."""
    found = []
    for again, smallest in ((False, 1 << 40), (True, 0)):
        monkeypatch.setattr(recompute_kept, "SMALLEST", smallest)
        computed, losses = losses_of(model, batch, options, folder / str(smallest))
        assert computed == again
        assert losses[-1] < losses[0]
        found.append(losses)
    return found


def test_losses_are_equal_bit_for_bit(tmp_path, monkeypatch):
    batch = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    kept, computed = both(Attending, batch, CompileOptions(agp="tokens"), tmp_path, monkeypatch)
    assert kept == computed


def test_a_mixer_has_equal_losses_where_no_product_is_fused_with_an_addition(tmp_path, monkeypatch):
    """With fused operations a kernel that takes rows rounds otherwise than the one that computes all of them."""
    if native_toolchain().arch != "x86_64":
        pytest.skip("every processor of this kind fuses them")
    batch = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 10
    options = CompileOptions(agp="tokens", target_options=CpuOptions(mcpu="x86-64-v2"))
    mixer = runpy.run_path(str(EXAMPLES["mixer"]))["MLPMixer"]
    kept, computed = both(lambda: mixer(depth=1), batch, options, tmp_path, monkeypatch)
    assert kept == computed
