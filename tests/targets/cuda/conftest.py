"""An emulated GPU for these tests: emitted kernels run on the CPU, below TVM's real CUDA runtime."""

import ctypes
import dataclasses
import shutil

import pytest

from fqt_deploy.targets import registry


@pytest.fixture(scope="session")
def emulation(tmp_path_factory):
    """Folder of the emulated device's libraries; from now on TVM takes it for a GPU."""
    if shutil.which("g++") is None:
        pytest.skip("the emulation needs g++")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has an NVIDIA driver: run -m gpu instead of the emulation")
    from tools.cuda_emulation.emulate import load_emulated_device

    folder = tmp_path_factory.mktemp("emulation")
    load_emulated_device(folder)
    return folder


@pytest.fixture(scope="session")
def emulated_target(emulation):
    """Makes the CUDA target for given architectures, with kernels compiled for the emulation."""
    from fqt_deploy.targets.cuda.target import cuda_target
    from tools.cuda_emulation.emulate import compile_for_emulation

    def make(architectures=None):
        target = cuda_target(architectures)
        return dataclasses.replace(target, compile_source=lambda source, _: compile_for_emulation(source, emulation))

    return make


@pytest.fixture
def emulated_cuda(emulated_target, monkeypatch):
    """Within the test, ``--target cuda`` compiles for the emulation."""
    monkeypatch.setitem(registry.TARGETS, "cuda", emulated_target)
