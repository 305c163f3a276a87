"""TVM's runtime libraries, which artifacts and C programs bring along: from the installed packages, or from PyPI.

Another architecture's are taken from the packages of the same versions on PyPI, once and on request (``fetch``).
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.user_cache import user_cache
from fqt_deploy.runtime.artifact import BUNDLED_RUNTIME
from fqt_deploy.targets.toolchain import TOOLCHAINS, Toolchain

_PACKAGES = ("apache-tvm", "apache-tvm-ffi")
_RUNTIME, _FFI = "tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so"
_LICENSES = {
    "tvm/LICENSE": "apache-tvm-LICENSE",
    "tvm/NOTICE": "apache-tvm-NOTICE",
    "tvm/licenses/LICENSE.builtin_fp16.txt": "compiler-rt-LICENSE",
}
_FFI_LICENSES = {
    "LICENSE": "apache-tvm-ffi-LICENSE",
    "NOTICE": "apache-tvm-ffi-NOTICE",
    "tvm_ffi/3rdparty/libbacktrace/LICENSE": "libbacktrace-LICENSE",
}


@dataclass(frozen=True)
class RuntimeLibraries:
    """The runtime libraries for one architecture.

    Attributes:
        runtime: ``libtvm_runtime.so``: kernels' thread pool, virtual machine, tensors.
        ffi: ``libtvm_ffi.so``: calls across languages; ``runtime`` needs it. In Python it comes with ``tvm_ffi``.
        runtime_licenses: texts to pass on with ``runtime``, by file name.
        ffi_licenses: texts to pass on with ``ffi``, by file name.
    """

    runtime: Path
    ffi: Path
    runtime_licenses: dict[str, Path]
    ffi_licenses: dict[str, Path]

    def companions(self) -> dict[str, Path]:
        """The files that an artifact brings along, by their paths there: all that a process with ``tvm_ffi`` lacks."""
        return {BUNDLED_RUNTIME: self.runtime, **{f"licenses/{n}": p for n, p in self.runtime_licenses.items()}}


def runtime_libraries(toolchain: Toolchain) -> RuntimeLibraries:
    """The libraries for an architecture; FQT509 if they have not been fetched."""
    if toolchain.is_native:
        root = Path(str(importlib.metadata.distribution("apache-tvm").locate_file("")))
        ffi_root = Path(str(importlib.metadata.distribution("apache-tvm-ffi").locate_file("")))
    else:
        root = ffi_root = _cache(toolchain)
    found = RuntimeLibraries(
        root / _RUNTIME,
        ffi_root / _FFI,
        {name: root / path for path, name in _LICENSES.items()},
        {name: _ffi_license(ffi_root, path) for path, name in _FFI_LICENSES.items()},
    )
    files = (found.runtime, found.ffi, *found.runtime_licenses.values(), *found.ffi_licenses.values())
    if missing := [path for path in files if not path.is_file()]:
        raise FqtError(
            f"TVM's runtime libraries for {toolchain.arch} are missing: {missing[0]} does not exist",
            code="FQT509",
            hint="install apache-tvm again" if toolchain.is_native else f"fqt-compile --fetch-runtime {toolchain.arch}",
        )
    return found


def fetch(arch: str) -> Path:
    """Download the libraries for ``arch`` from PyPI (about 100 MB, of which 6 MB are kept); returns their folder.

    Raises:
        FqtError: FQT509 if they cannot be downloaded, FQT508 if they cannot be written.
    """
    toolchain = TOOLCHAINS[arch]
    cache = _cache(toolchain)
    if cache.is_dir():
        return cache
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as workspace:
            wheels, files = Path(workspace) / "wheels", Path(workspace) / "files"
            _download(toolchain, wheels)
            for wheel in sorted(wheels.iterdir()):
                _extract(wheel, files)
            if not cache.is_dir():  # another process may have been faster
                files.rename(cache)
    except OSError as error:
        raise FqtError(f"cannot write {cache}: {error.strerror}", code="FQT508") from None
    return cache


def _download(toolchain: Toolchain, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", toolchain.wheel_platform, "--dest", str(folder)]
    command += [f"{package}=={importlib.metadata.version(package)}" for package in _PACKAGES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise FqtError(
            f"cannot download TVM's runtime libraries for {toolchain.arch}: {result.stderr.strip()}", code="FQT509"
        )


def _extract(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            wanted = name in (_RUNTIME, _FFI, *_LICENSES, *_FFI_LICENSES)
            if wanted or (".dist-info/licenses/" in name and wheel.name.startswith("apache_tvm_ffi")):
                archive.extract(name, folder)


def _ffi_license(root: Path, path: str) -> Path:
    """The path of a text of ``apache-tvm-ffi``: those without a folder are in the package's metadata."""
    metadata = f"apache_tvm_ffi-{importlib.metadata.version('apache-tvm-ffi')}.dist-info"
    return root / path if "/" in path else root / metadata / "licenses" / path


def _cache(toolchain: Toolchain) -> Path:
    versions = "-".join(importlib.metadata.version(package) for package in _PACKAGES)
    return user_cache() / f"tvm-runtime-{versions}-{toolchain.arch}"
