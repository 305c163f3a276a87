"""Build the C interface: ``python -m fqt_deploy.packaging.build_c_api FOLDER [--arch aarch64]``, or ``make c-api``.

FOLDER then holds all that a C program needs, and may be moved: ``include/fqt_runtime.h``; ``lib/`` with
``libfqt_runtime.so`` and the two libraries of TVM that it is linked against; ``licenses/``.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.packaging.runtime_libraries import RuntimeLibraries, runtime_libraries
from fqt_deploy.targets.toolchain import TOOLCHAINS, Toolchain

LIBRARY = "libfqt_runtime.so"
SOURCES = Path(fqt_deploy.__file__).parent / "c_api"
"""The folder of the header and the sources, C++17."""

_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")


def build_c_api(folder: Path, toolchain: Toolchain) -> Path:
    """Build everything into ``folder`` and return the library.

    Raises:
        FqtError: FQT302 if there is no C++ compiler or it fails, FQT509 if TVM's libraries are missing.
    """
    libraries = runtime_libraries(toolchain)
    lib = folder / "lib"
    for path in (libraries.runtime, libraries.ffi):
        _copy(path, lib / path.name)
    _copy(SOURCES / "include" / "fqt_runtime.h", folder / "include" / "fqt_runtime.h")
    for name, path in (libraries.runtime_licenses | libraries.ffi_licenses).items():
        _copy(path, folder / "licenses" / name)
    options = ("-shared", "-s", "-Wl,--no-undefined", "-Wl,-rpath,$ORIGIN", f"-Wl,-soname,{LIBRARY}")
    link(sorted((SOURCES / "src").glob("*.cc")), lib / LIBRARY, toolchain, libraries, options)
    return lib / LIBRARY


def build_kernel_runner(folder: Path, toolchain: Toolchain) -> Path:
    """Build ``c_api/verify/run_kernels.cc`` into ``folder``, beside the libraries that it needs; errors as above."""
    libraries = runtime_libraries(toolchain)
    for path in (libraries.runtime, libraries.ffi):
        _copy(path, folder / path.name)
    sources = [SOURCES / "src" / "json.cc", SOURCES / "src" / "tensors.cc", SOURCES / "verify" / "run_kernels.cc"]
    link(sources, folder / "run_kernels", toolchain, libraries, ("-Wl,-rpath,$ORIGIN",))
    return folder / "run_kernels"


def link(
    sources: Sequence[Path], output: Path, toolchain: Toolchain, libraries: RuntimeLibraries, options: Sequence[str]
) -> None:
    """Compile C++ ``sources`` and link them against TVM's libraries; FQT302 if there is no compiler or it fails."""
    compiler = toolchain.compiler()
    # The headers are the same for every architecture.
    headers = distribution("apache-tvm-ffi").locate_file("tvm_ffi/include")
    include = ("-isystem", str(headers), "-I", str(SOURCES / "include"), "-I", str(SOURCES / "src"))
    # TVM's library registers functions as it is loaded: nothing refers to it by name.
    tvm = ("-Wl,--no-as-needed", str(libraries.runtime), str(libraries.ffi))
    # One translation unit takes a third of the time: TVM's headers are read once.
    unit = "".join(f'#include "{source}"\n' for source in sources)
    command = (compiler, *_FLAGS, *include, *options, "-x", "c++", "-", "-x", "none", *tvm, "-o", str(output))
    result = subprocess.run(command, input=unit, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FqtError(f"{compiler} fails:\n{result.stderr.strip()}", code="FQT302")


def _copy(source: Path, destination: Path) -> None:
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
    except OSError as error:
        raise FqtError(f"cannot write {destination}: {error.strerror}", code="FQT508") from None


def main() -> None:
    """Run the command and build the C interface."""
    parser = argparse.ArgumentParser(description="Build the C interface for a kind of machine.")
    parser.add_argument("folder", type=Path, help="to write")
    parser.add_argument("--arch", choices=sorted(TOOLCHAINS), default=platform.machine())
    arguments = parser.parse_args()
    try:
        build_c_api(arguments.folder, TOOLCHAINS[arguments.arch])
    except FqtError as error:
        sys.exit(error.render())
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*") if path.is_file())
    print(f"{arguments.folder}: {size / 1e6:.1f} MB for {arguments.arch}")


if __name__ == "__main__":
    main()
