"""From a Relax program to a shared library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.support.cc import cross_compiler, get_cc

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


def build_executable(program: RelaxProgram, target: Target) -> Any:
    """Compile ``program`` for ``target``; kernels are callable by their symbols as well as through the step.

    Kernels trust their arguments: sessions check what is given to the step, whose every call is typed. Checks in all
    kernels would be three quarters of the library, and half of the time that LLVM takes.
    """
    with tvm.transform.PassContext(config={"tirx.disable_assert": True}):
        return target.compile(program.module, lower_relax)


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


def export_library(executable: Any, path: Path, target: Target) -> None:
    """Link the executable into the shared library ``path``; FQT302 if that fails, FQT404 if device code is missing."""
    linker = find_linker(target.toolchain)
    try:
        executable.export_library(str(path), fcompile=cross_compiler(linker))
    except RuntimeError as error:  # its output
        raise FqtError(f"{linker} cannot link the library: {error}", code="FQT302") from None
    target.check_library(path)
