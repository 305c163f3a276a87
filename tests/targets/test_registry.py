"""Targets by name, and the options that each has."""

import subprocess
import sys

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import options_in
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cuda.options import CudaOptions
from fqt_deploy.targets.registry import TARGETS, make_target


def test_options_of_every_target():
    found = {name: list(options_in(entry.options)) for name, entry in TARGETS.items()}
    assert found == {"cpu": ["mcpu"], "aarch64": ["mcpu"], "rpi5": ["mcpu"], "cuda": ["arch", "tf32"]}


def test_a_target_takes_its_own_options_alone():
    with pytest.raises(FqtError, match="target cpu takes CpuOptions, not CudaOptions") as caught:
        make_target("cpu", CudaOptions())
    assert caught.value.code == "FQT202"
    with pytest.raises(FqtError, match="target cuda takes CudaOptions, not CpuOptions"):
        make_target("cuda", CpuOptions())
    with pytest.raises(FqtError, match="unknown target 'tpu'") as caught:
        make_target("tpu")
    assert (caught.value.code, caught.value.hint) == ("FQT401", "targets: cpu, aarch64, rpi5, cuda")


def test_options_reach_the_target():
    assert make_target("rpi5").features.mcpu == "cortex-a76"
    assert make_target("aarch64", CpuOptions(mcpu="cortex-a72")).features.mcpu == "cortex-a72"
    target = make_target("cuda", CudaOptions(arch="sm_80", tf32=True))
    assert (target.features.architectures, target.features.tf32) == (("sm_80",), True)


def test_naming_targets_and_options_imports_no_tvm():
    program = "import sys; import fqt_deploy.targets.registry; print({'tvm', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
