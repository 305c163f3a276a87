"""An emulated GPU for these tests: emitted kernels run on the CPU, below TVM's real CUDA runtime."""

import ctypes
import dataclasses
import shutil

import pytest

from fqt_deploy.targets import registry


def _has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


HAS_DRIVER = _has_driver()
"""Asked while tests are collected: later a stand-in may be loaded under the same name."""


@pytest.fixture(scope="session", autouse=True)
def emulated_libraries(tmp_path_factory):
    """Folder of the emulated device's libraries; from now on TVM takes it for a GPU. None beside a real driver."""
    if HAS_DRIVER or shutil.which("g++") is None:
        return None
    from tools.cuda_emulation.emulate import load_emulated_device

    folder = tmp_path_factory.mktemp("emulation")
    load_emulated_device(folder)
    return folder


@pytest.fixture(scope="session")
def emulation(emulated_libraries):
    """The folder, or a skip where nothing is emulated."""
    if HAS_DRIVER:
        pytest.skip("this machine has an NVIDIA driver: run -m gpu instead of the emulation")
    if emulated_libraries is None:
        pytest.skip("the emulation needs g++")
    return emulated_libraries


@pytest.fixture(scope="session")
def emulated_target(emulation, emitted_sources):
    """Makes the CUDA target for given architectures, with kernels compiled for the emulation."""
    from fqt_deploy.targets.cuda.target import cuda_target
    from tools.cuda_emulation.emulate import compile_for_emulation

    def make(architectures=None, *, tf32=False):
        def compile_source(source, _):
            emitted_sources.append(source)
            return compile_for_emulation(source, emulation)

        return dataclasses.replace(cuda_target(architectures, tf32=tf32), compile_source=compile_source)

    return make


@pytest.fixture(scope="session")
def emulated_entry(emulated_target):
    """The CUDA target as the registry has it, but made for the emulation."""
    return dataclasses.replace(
        registry.TARGETS["cuda"], make=lambda options: emulated_target(options.arch, tf32=options.tf32)
    )


@pytest.fixture(scope="session")
def emitted_sources():
    """CUDA source of every module that was compiled for the emulation so far."""
    return []


@pytest.fixture(scope="session")
def digits_step(digits_source, emulated_entry, emitted_sources, tmp_path_factory):
    """A verified step of the digits network for batches of 8: the result, its folder, and the emitted source."""
    from fqt_deploy.compiler.compile_model import compile_model
    from fqt_deploy.core.options import CompileOptions

    patch = pytest.MonkeyPatch()
    patch.setitem(registry.TARGETS, "cuda", emulated_entry)
    output = tmp_path_factory.mktemp("cuda") / "digits.fqt"
    try:
        result = compile_model(digits_source, CompileOptions(target="cuda", agp="once", verify="numerics"), output)
    finally:
        patch.undo()
    return result, output, emitted_sources[-1]


@pytest.fixture
def emulated_cuda(emulated_entry, monkeypatch):
    """Within the test, ``--target cuda`` compiles for the emulation."""
    monkeypatch.setitem(registry.TARGETS, "cuda", emulated_entry)
