"""Compiled on this machine for 64-bit ARM, run under QEMU: the same integers, the same training."""

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.cli import main as compile_command
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.packaging.build_c_api import build_c_api
from fqt_deploy.packaging.runtime_libraries import runtime_libraries
from fqt_deploy.targets.toolchain import TOOLCHAINS
from tests.packaging.conftest import compile_example, write_rows
from tools import count_instructions

EXAMPLES = Path(__file__).parents[2] / "examples"
AARCH64 = TOOLCHAINS["aarch64"]
REQUIRED = "FQT_REQUIRE_CROSS"
"""Environment variable: with it, missing tools are a failure. Continuous integration sets it."""

MODEL = """
import torch
from torch import nn

def build_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def example_inputs():
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8)
"""

SIGNS = {"activation_bits": 1, "activation_grid": "sign"}

foreign = pytest.mark.skipif(AARCH64.is_native, reason="this machine is an aarch64 one: nothing is foreign or emulated")


@pytest.fixture(scope="module")
def tools_are_there():
    try:
        AARCH64.compiler()
        AARCH64.runner()
        runtime_libraries(AARCH64)
    except FqtError as error:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{error.message}; make cross-env")
        pytest.skip(f"{error.message}: {error.hint}, or make cross-env")


@pytest.fixture(scope="module")
def rpi5(tools_are_there, digits_source, tmp_path_factory):
    """The same model and options as ``digits_artifact``, for a Raspberry Pi 5, verified under emulation."""
    folder = tmp_path_factory.mktemp("rpi5") / "digits.fqt"
    return compile_model(digits_source, CompileOptions(target="rpi5", verify="numerics"), folder)


@pytest.fixture(scope="module")
def train(tools_are_there, tmp_path_factory):
    """Runs examples/c/train.c for aarch64 and returns the losses."""
    folder = tmp_path_factory.mktemp("c-api-aarch64")
    build_c_api(folder, AARCH64)
    program = compile_example(AARCH64.compiler().replace("g++", "gcc"), folder, folder / "train")

    def run(*arguments):
        command = [*AARCH64.runner(), program, *arguments]
        output = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
        return [float(text) for text in re.findall(r"^step \d+ loss (\S+)$", output, re.MULTILINE)]

    return run


@pytest.fixture
def batches(digits, tmp_path):
    images, labels = (t[:80].numpy() for t in digits)
    write_rows(tmp_path / "data.raw", images, labels)
    return [(images[i : i + 8], labels[i : i + 8]) for i in range(0, 80, 8)]


@pytest.mark.thorough
def test_every_kernel_agrees_with_pytorch(rpi5):
    rows = rpi5.verification.rows
    assert len(rows) == len(rpi5.manifest.kernels) > 50
    assert [row for row in rows if not row.ok] == []
    exact = {row.op for row in rows if row.tolerance is None}
    assert {"level_conv2d", "bitplane_conv2d_input_grad", "level_weight_grad", "pack_levels"} <= exact
    assert all(row.error == 0 for row in rows if row.tolerance is None)


REQUIRES = {"rpi5": "atomics asimdrdm asimdhp asimddp", "aarch64": ""}
MCPU = {"rpi5": "cortex-a76", "aarch64": "generic"}


@pytest.mark.quick(only=("rpi5",))
@pytest.mark.parametrize("target", REQUIRES)
def test_a_small_step_agrees_with_pytorch(tools_are_there, model_file, tmp_path, target):
    source = load_model(model_file(MODEL))
    options = CompileOptions(target=target, optimizer=SGD(lr=0.1), verify="numerics", **SIGNS)
    result = compile_model(source, options, tmp_path / "mlp.fqt")
    assert {"binary_conv2d", "bitplane_weight_grad", "pack_signs"} <= {row.op for row in result.verification.rows}
    assert result.manifest.target == {
        "name": target, "arch": "aarch64", "mcpu": MCPU[target], "requires": REQUIRES[target]
    }  # fmt: skip
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer"])
def test_every_kernel_of_every_example_agrees_with_pytorch(tools_are_there, example, tmp_path):
    source = load_model(EXAMPLES / f"{example}.py", batch=4)
    result = compile_model(source, CompileOptions(target="rpi5", verify="numerics"), tmp_path / "step.fqt")
    assert len(result.verification.rows) == len(result.manifest.kernels) > 100
    assert [row for row in result.verification.rows if not row.ok] == []


@pytest.mark.thorough
def test_it_trains_like_this_machine(rpi5, train, digits_artifact, batches, tmp_path):
    losses = train(rpi5.output, tmp_path / "data.raw", 2)
    session = fqt_deploy.load(digits_artifact)
    np.testing.assert_allclose(losses, [session.step(*b) for _ in range(2) for b in batches], rtol=1e-3)


@pytest.mark.thorough
def test_checkpoints_move_between_machines(rpi5, train, digits_artifact, batches, tmp_path):
    checkpoint, data = tmp_path / "here.safetensors", tmp_path / "data.raw"
    session, straight = fqt_deploy.load(digits_artifact), fqt_deploy.load(digits_artifact)
    session.seed = straight.seed = 5
    session.step(*batches[0])
    straight.step(*batches[0])
    session.save_checkpoint(checkpoint)
    written = load_file(checkpoint)
    assert train(rpi5.output, data, 0, checkpoint) == []  # reads and writes it, no more
    copied = load_file(checkpoint)
    assert copied.keys() == written.keys()
    assert all(np.array_equal(copied[name], written[name]) for name in written)
    there = train(rpi5.output, data, 1, checkpoint)
    np.testing.assert_allclose(there, [straight.step(*batch) for batch in batches], rtol=1e-3)
    session.load_checkpoint(checkpoint)
    assert (session.seed, session.step_count) == (5, 11)
    here = [session.step(*batch) for batch in batches]
    np.testing.assert_allclose(here, [straight.step(*batch) for batch in batches], rtol=1e-3)


@pytest.mark.thorough
def test_the_artifact_is_for_the_other_machine(rpi5):
    manifest = Manifest.from_json((rpi5.output / "manifest.json").read_bytes())
    requires = "atomics asimdrdm asimdhp asimddp"
    assert manifest.target == {"name": "rpi5", "arch": "aarch64", "mcpu": "cortex-a76", "requires": requires}
    for name in ("step.so", "lib/libtvm_runtime.so"):
        header = subprocess.run(["readelf", "-h", rpi5.output / name], capture_output=True, text=True, check=True)
        assert "AArch64" in header.stdout
    if not AARCH64.is_native:
        with pytest.raises(FqtError, match="compiled for aarch64") as caught:
            fqt_deploy.load(rpi5.output)
        assert caught.value.code == "FQT402"


@pytest.mark.thorough
def test_popcounts_are_vector_instructions_and_tiles_stay_in_registers(tools_are_there, digits_source, tmp_path):
    result = compile_model(digits_source, CompileOptions(agp="once", target="rpi5", **SIGNS), tmp_path / "signs.fqt")
    kernels = dict(count_instructions.disassemble(result.output / "step.so", "aarch64"))
    dialect = count_instructions.DIALECTS["aarch64"]
    ops = {kernel.symbol: kernel.op for kernel in result.manifest.kernels}
    products = [symbol for symbol in kernels if ops.get(symbol) == "binary_conv2d"]
    assert products
    for symbol in products:
        loop = count_instructions.count(count_instructions.hottest_loop(kernels[symbol], dialect), dialect)
        assert loop.products >= 16
        assert loop.spills == 0
        assert loop.products * 3 > loop.total * 0.75  # xor, count, accumulate; little else


@pytest.mark.thorough
@foreign
@pytest.mark.parametrize("target", ["rpi5", "aarch64"])
def test_missing_tools_are_named(model_file, tmp_path, monkeypatch, target):
    def refused(code, text, *options):
        arguments = [model_file(MODEL), "-o", tmp_path / "m", "--target", target, *options]
        result = CliRunner().invoke(compile_command, [str(a) for a in arguments])
        assert result.exit_code == 1, result.output
        assert f"error[{code}]" in result.output
        assert text in result.output
        assert not (tmp_path / "m").exists()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused("FQT402", "cannot be timed", "--profile")
    refused("FQT402", "cortex-a72", "--mcpu", "znver4")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if "qemu" not in name else None)
    refused("FQT509", "fqt-compile --fetch-runtime aarch64")
    refused("FQT403", "apt install qemu-user-static", "--verify", "numerics")
    monkeypatch.setattr("shutil.which", lambda name: None)
    refused("FQT302", "apt install g++-aarch64-linux-gnu")
