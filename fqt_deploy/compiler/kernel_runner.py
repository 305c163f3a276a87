"""Call single kernels of a compiled library: in this process, or under an emulator for another kind of machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.packaging.build_c_api import build_kernel_runner
from fqt_deploy.targets.toolchain import Toolchain

Array = NDArray[Any]


class KernelRunner(Protocol):
    """Runs kernels, whose arguments are operands first and then what they write."""

    def run(
        self, symbol: str, arrays: Sequence[Array], arguments: Sequence[int], results: Sequence[int]
    ) -> list[Array]:
        """Call kernel ``symbol`` with copies of the arrays at ``arguments``, and return those at ``results``."""


@contextmanager
def kernel_runner(library: Path, toolchain: Toolchain, device: Any) -> Iterator[KernelRunner]:
    """A runner for the kernels of ``library``.

    Args:
        library: the library for the machine of ``toolchain``.
        toolchain: the toolchain of the target.
        device: TVM device of this machine that they run on, unless they are for another machine.

    Raises:
        FqtError: FQT403 if it is for another kind of machine and there is no emulator, FQT302 or FQT509 if its program
            cannot be built.
    """
    if toolchain.is_native:
        yield _Direct(tvm.runtime.load_module(str(library)), device)
        return
    with tempfile.TemporaryDirectory() as folder:
        program = build_kernel_runner(Path(folder), toolchain)
        command = [*toolchain.runner(), str(program), str(library)]
        environment = {**os.environ, "TVM_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
            yield _Emulated(process)


@dataclass(frozen=True)
class _Direct:
    module: Any
    device: Any

    def run(
        self, symbol: str, arrays: Sequence[Array], arguments: Sequence[int], results: Sequence[int]
    ) -> list[Array]:
        tensors = [tvm.runtime.tensor(array, self.device) for array in arrays]
        self.module.get_function(symbol, query_imports=True)(*(tensors[i] for i in arguments))
        return [tensors[i].numpy() for i in results]


@dataclass(frozen=True)
class _Emulated:
    """A runner of kernels in an emulator, by ``c_api/verify/run_kernels.cc``."""

    process: subprocess.Popen[bytes]

    def run(
        self, symbol: str, arrays: Sequence[Array], arguments: Sequence[int], results: Sequence[int]
    ) -> list[Array]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        metadata = {
            "symbol": symbol,
            "arguments": " ".join(map(str, arguments)),
            "results": " ".join(map(str, results)),
        }
        request = save({str(i): np.array(array, order="C") for i, array in enumerate(arrays)}, metadata)
        try:
            self.process.stdin.write(len(request).to_bytes(8, "little") + request)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said before it ended is on the terminal; the missing answer is the error
        answer = load(self._read(int.from_bytes(self._read(8, symbol), "little"), symbol))
        return [answer[str(i)] for i in results]

    def _read(self, size: int, symbol: str) -> bytes:
        assert self.process.stdout is not None
        content = self.process.stdout.read(size)
        if len(content) < size:
            raise FqtError(f"kernel {symbol} ends the emulated process", code="FQT900")
        return content
