"""Every processor level that this machine can run computes the same bits."""

import re

import numpy as np
import pytest
import torch
import tvm
from torch import nn

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.runtime import processor
from fqt_deploy.targets.cpu.features import host_cpu
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "znver4", "sapphirerapids")
ONE_BIT = (
    "pack_signs", "pack_weight", "transpose_packed_weight", "pack_positions", "quantize_pack_samples",
    "quantize_pack_channels", "binary_conv2d", "level_conv2d", "bitplane_conv2d_input_grad", "bitplane_weight_grad",
    "level_weight_grad", "tap_sums", "position_sums",
)  # fmt: skip


def runs(level):
    try:
        make_target("cpu", CpuOptions(mcpu=level))
    except FqtError:
        return False
    return True


def level_parameters():
    skip = pytest.mark.skip(reason="this machine cannot run it")
    return [pytest.param(level, marks=() if runs(level) else skip) for level in LEVELS]


AT_ONE_LEVEL = (
    "pack_weight-x86-64-v2", "binary_conv2d-x86-64-v3", "bitplane_conv2d_input_grad-x86-64-v4",
    "quantize_pack_samples-znver4", "bitplane_weight_grad-sapphirerapids", "level_conv2d-sapphirerapids",
)  # fmt: skip


@pytest.mark.quick(only=AT_ONE_LEVEL)
@pytest.mark.parametrize("level", level_parameters())
@pytest.mark.parametrize("name", ONE_BIT)
def test_one_bit_ops_equal_their_reference(level, name):
    """All samples of the op in one module, so that one compilation serves them."""
    target = make_target("cpu", CpuOptions(mcpu=level))
    spec = FQT_OPS[name]
    samples = list(spec.sample_inputs())
    functions = {}
    for i, arguments in enumerate(samples):
        functions[f"f{i}"] = target.schedule(op_function(name, arguments)).with_attr("global_symbol", f"f{i}")
    module = tvm.compile(tvm.IRModule(functions), target.tvm_target)
    for i, arguments in enumerate(samples):
        expected = spec(*arguments).reference()
        expected = list(expected) if isinstance(expected, (tuple, list)) else [expected]
        inputs = [tvm.runtime.tensor(a.contiguous().numpy()) for a in arguments if isinstance(a, torch.Tensor)]
        found = [tvm.runtime.tensor(torch.zeros_like(e).numpy()) for e in expected]
        module[f"f{i}"](*inputs, *found)
        for a, e in zip(found, expected, strict=True):
            if e.dtype.is_floating_point:
                torch.testing.assert_close(torch.from_numpy(a.numpy()), e, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(a.numpy(), e.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("level", level_parameters())
def test_a_step_learns_alike_at_every_level(level, digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    x, y = (part[:64] for part in digits)
    losses = []
    for mcpu in (level, "x86-64-v2"):
        step = fqt_deploy.compile(model, example_inputs=(x, y), mcpu=mcpu, recipe="scq", agp="once")
        losses.append([step(x, y) for _ in range(10)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-2)
    assert losses[0][-1] < losses[0][0]


def test_what_cannot_run_here_is_refused():
    with pytest.raises(FqtError, match=r"FQT402: unknown .*processor 'z80'"):
        make_target("cpu", CpuOptions(mcpu="z80"))
    with pytest.raises(FqtError, match="FQT401"):
        make_target("tpu")
    assert make_target("cpu").features.mcpu == host_cpu()


def test_extensions_that_the_system_hides_are_not_used(monkeypatch, tmp_path):
    """As in a virtual machine: LLVM goes by the model of the processor, which then promises too much."""
    offered = [line for line in processor.CPUINFO.read_text().splitlines() if line.startswith("flags")]
    if not offered or not make_target("cpu").features.has_vpopcnt:
        pytest.skip("this machine has nothing to hide")
    (tmp_path / "cpuinfo").write_text(re.sub(r" (amx_|avx512)\w+", "", offered[0]))
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    target = make_target("cpu")
    assert target.features.vector_bits == 256
    assert not any(name.startswith(("amx", "avx512")) for name in target.features.requires)
    assert "-avx512f" in target.tvm_target.attrs["mattr"]
    with pytest.raises(FqtError, match=r"FQT402: this machine .* cannot run code for x86-64-v4: it lacks avx512f"):
        make_target("cpu", CpuOptions(mcpu="x86-64-v4"))


def test_a_system_that_refuses_tile_registers_has_none(monkeypatch):
    if "amx_tile" not in make_target("cpu").features.requires:
        pytest.skip("this machine has none")
    monkeypatch.setattr(processor, "_grants_tiles", lambda: False)
    assert not make_target("cpu").features.has_amx


def test_flags_of_higher_levels_include_those_of_lower_ones():
    if not runs("x86-64-v4"):
        pytest.skip("this machine cannot run them")
    v2, v3, v4 = (set(make_target("cpu", CpuOptions(mcpu=level)).features.requires) for level in LEVELS[:3])
    assert "popcnt" in v2 < v3 < v4
    assert "avx2" in v3 - v2
    assert "avx512f" in v4 - v3
