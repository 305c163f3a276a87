"""The compiler nvcc and what TVM needs to use it: found, loaded, called, and its result checked.

The machine that compiles needs no GPU and no driver. TVM's CUDA runtime links against the driver's library, so where
there is none a stand-in without functions takes its place; without it TVM would export source code and no binary.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import tvm

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.cuda.features import CudaFeatures

NVCC_FLAGS = ("--fatbin", "--threads=0", "-O3", "-std=c++17", "-fmad=false", "--expt-relaxed-constexpr", "-w")
"""Flags of nvcc. ``-fmad=false``: every float operation rounds, as in PyTorch. A contracted multiply-add could turn a
bit.

``-w``: warnings about generated code, such as unused variables, are thousands and nobody's to mend.
"""

CUDA_RUNTIME_LIBRARY = "libtvm_runtime_cuda.so"
FATBIN_MAGIC = b"\x50\xed\x55\xba"
INSTALL = "pip install 'fqt-deploy[cuda]'"

_DRIVER_FUNCTIONS = (
    "cuDeviceGetName", "cuFuncSetAttribute", "cuLaunchKernelEx", "cuModuleGetFunction", "cuModuleLoadData",
    "cuModuleUnload", "cuTensorMapEncodeTiled", "cuGetErrorName", "cuGetErrorString",
)  # fmt: skip
"""Functions of the driver that TVM's CUDA runtime takes."""
_NO_DRIVER = 100
"""The error ``CUDA_ERROR_NO_DEVICE``, which every function of the stand-in returns."""


def find_nvcc() -> Path:
    """The CUDA compiler: that of the installed packages, else the one on the path.

    Raises:
        FqtError: FQT404 if there is none.
    """
    found = [folder / "bin" / "nvcc" for folder in _cuda_packages()]
    for candidate in found:
        if candidate.is_file():
            return candidate
    on_path = shutil.which("nvcc")
    if on_path is None:
        raise FqtError("the CUDA compiler nvcc is not installed", code="FQT404", hint=INSTALL)
    return Path(on_path)


def compile_cuda(source: str, features: CudaFeatures) -> bytes:
    """Binaries of ``source`` for every architecture, and PTX for later ones, in one fatbin.

    Raises:
        FqtError: FQT404 if there is no nvcc or it does not run, FQT301 if it rejects the source.
    """
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory(prefix="fqt_cuda_") as name:
        code, binary = Path(name) / "kernels.cu", Path(name) / "kernels.fatbin"
        code.write_text(source)
        command = [str(nvcc), *NVCC_FLAGS, *architecture_flags(features), str(code), "-o", str(binary)]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise FqtError(f"{nvcc} does not run: {error.strerror}", code="FQT404", hint=INSTALL) from None
        if finished.returncode:
            raise _failure(nvcc, finished.stderr)
        content = binary.read_bytes()
    if not content.startswith(FATBIN_MAGIC):
        raise FqtError(f"{nvcc} wrote no fatbin", code="FQT404", hint=INSTALL)
    return content


def architecture_flags(features: CudaFeatures) -> list[str]:
    """The flags for one PTX, a binary from it for each architecture, and itself where later devices can translate it.

    Translating the source takes several times as long as assembling its PTX, and is done once.
    """
    virtual = features.virtual
    results = [*features.architectures, *([virtual] if features.forward_compatible else [])]
    return [flag for result in results for flag in ("-gencode", f"arch={virtual},code={result}")]


def _failure(nvcc: Path, output: str) -> FqtError:
    errors = [line for line in output.splitlines() if re.search(r"\b(error|fatal)\b", line, re.IGNORECASE)]
    text = "\n".join(errors[:5]) or output[-500:]
    unsupported = re.search(r"Unsupported gpu architecture '(\w+)'", output)
    if unsupported:
        return FqtError(
            f"{nvcc} does not know {unsupported.group(1)}",
            code="FQT402",
            hint=f"choose other architectures, or install the pinned compiler: {INSTALL}",
        )
    if "cc1plus" in output or "No such file or directory" in output or "host compiler" in output:
        return FqtError(
            f"nvcc cannot use the system's C++ compiler: {text}",
            code="FQT404",
            hint="install one that it supports (Debian: apt install g++)",
        )
    return FqtError(f"nvcc rejects the generated source: {text}", code="FQT301")


def enable_cuda_runtime() -> None:
    """Make TVM's CUDA code generation and runtime available in this process, with or without a driver.

    Raises:
        FqtError: FQT404 if a library is missing, FQT302 if the stand-in for the driver cannot be built.
    """
    if tvm.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    if not _loads("libcuda.so.1"):
        with tempfile.TemporaryDirectory(prefix="fqt_cuda_") as folder:
            ctypes.CDLL(str(_build_stand_in(Path(folder))), ctypes.RTLD_GLOBAL)
    runtimes = [folder / "lib" / "libcudart.so.13" for folder in _cuda_packages()]
    if not any(_loads(str(path)) for path in ("libcudart.so.13", *runtimes)):
        raise FqtError("the CUDA runtime library libcudart.so.13 is missing", code="FQT404", hint=INSTALL)
    library = Path(str(tvm.__file__)).parent / "lib" / CUDA_RUNTIME_LIBRARY
    if not _loads(str(library)) or tvm.get_global_func("device_api.cuda", allow_missing=True) is None:
        raise FqtError(
            f"{library} cannot be loaded", code="FQT404", hint="install apache-tvm again, for the pinned CUDA version"
        )


def _cuda_packages() -> list[Path]:
    """Folders of CUDA 13 among the installed packages."""
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations if package is not None else None
    return [Path(folder) / "cu13" for folder in folders or ()]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _build_stand_in(folder: Path) -> Path:
    """A library with the driver's name whose functions report that there is no device."""
    code, library = folder / "driver.c", folder / "libcuda.so.1"
    code.write_text("".join(f"int {name}(void) {{ return {_NO_DRIVER}; }}\n" for name in _DRIVER_FUNCTIONS))
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FqtError("there is no C compiler", code="FQT302", hint="install one (Debian: apt install gcc)")
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(code), "-o", str(library)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise FqtError(f"{compiler} cannot build the stand-in for the driver: {finished.stderr[-500:]}", code="FQT302")
    return library
