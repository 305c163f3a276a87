"""The build of a Relax program as a shared library."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.support.cc import cross_compiler, get_cc

from fqt_deploy.codegen.kernel_cache import kernel_cache
from fqt_deploy.codegen.kernel_objects import PASS_CONFIG, KernelSources, compiling
from fqt_deploy.codegen.to_relax import RelaxProgram
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.targets.base import Target
from fqt_deploy.targets.toolchain import Toolchain


@tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
def lower_relax(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
    """Lower to virtual machine calls; kernels are scheduled and memory is planned already."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(module)


def build_library(program: RelaxProgram, target: Target, path: Path, *, codes: bool = False) -> None:
    """Compile ``program`` into the shared library ``path``; kernels can be called by their symbols, too.

    Args:
        program: what the library computes.
        target: the machine that it is for.
        path: the file.
        codes: whether it brings the functions along that write and read codes of gradients.

    Raises:
        FqtError: FQT302 if the library cannot be linked, FQT404 if device code is missing.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if target.separate_objects:
            sources = KernelSources(program.texts(), program.function, target, kernel_cache(target), program.small())
            objects = stack.enter_context(compiling(sources, Path(folder)))
            module = program.callers
        else:
            objects, module = [], _scheduled(program.module, target)
        with tvm.transform.PassContext(config=PASS_CONFIG):
            executable = target.compile(module, lower_relax)
        parts = (_CLOCK, _PLACES, _CODES) if codes else (_CLOCK, _PLACES)
        written = [_compiled(part, target, Path(folder)) for part in parts]
        export_library(executable, path, target, [*(future.result() for future in objects), *written])


_CLOCK = Path(__file__).with_name("kernel_clock.c")
_PLACES = Path(__file__).with_name("array_places.c")
_CODES = Path(__file__).with_name("channel_codes.c")


def _compiled(source: Path, target: Target, folder: Path) -> Path:
    """The object file, in ``folder``, of functions that a runtime calls beside the step; FQT302 if it has errors."""
    compiler, path = find_linker(target.toolchain), folder / f"{source.stem}.o"
    # No fused multiply-add: every machine must decode codes to the same bits.
    options = ["-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"]
    command = [compiler, *options, "-c", str(source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FqtError(f"{compiler} cannot compile {source.name}: {done.stderr.strip()}", code="FQT302")
    return path


def _scheduled(module: tvm.IRModule, target: Target) -> tvm.IRModule:
    """The module ``module`` with its kernels scheduled."""
    functions = module.functions.items()
    return tvm.IRModule({v: target.schedule(f) if isinstance(f, tirx.PrimFunc) else f for v, f in functions})


def build_functions(functions: Mapping[str, tirx.PrimFunc], target: tvm.target.Target) -> Any:
    """Compile scheduled kernels for ``target``, callable by their names, without a program around them."""
    module = tvm.IRModule({n: function.with_attr("global_symbol", n) for n, function in functions.items()})
    with target:
        return tvm.compile(module, target)


def find_linker(toolchain: Toolchain) -> str:
    """The compiler driver that links for ``toolchain``; FQT302 if there is none. For this machine C will do."""
    linker = get_cc() if toolchain.is_native else toolchain.compiler()
    if linker is None:
        raise FqtError("there is no C compiler", code="FQT302", hint="install one (Debian: apt install gcc)")
    return str(linker)


def export_library(executable: Any, path: Path, target: Target, objects: Sequence[Path] = ()) -> None:
    """Link the executable and ``objects`` into the shared library ``path``; errors as of ``build_library``.

    TVM describes every kernel to debuggers, as lines of a file that does not exist: without it, the library is a third
    smaller. Names of functions stay, for profilers.
    """
    linker = find_linker(target.toolchain)
    try:
        # By itself TVM asks this machine's compiler what it compiles for, also where another one links.
        compiler = cross_compiler(linker, ["-Wl,-S"], get_target_triple=lambda: target.toolchain.triple)
        executable.export_library(str(path), fcompile=compiler, addons=[str(o) for o in objects])
    except RuntimeError as error:  # its output
        raise FqtError(f"{linker} cannot link the library: {error}", code="FQT302") from None
    target.check_library(path)
