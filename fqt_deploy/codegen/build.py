"""From a Relax program to a shared library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from fqt_deploy.codegen.to_relax import RelaxProgram
from fqt_deploy.targets.base import Target


@tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
def lower_relax(module: tvm.IRModule, _context: Any) -> tvm.IRModule:
    """Plan memory over the whole step and lower to virtual machine calls; kernels are scheduled already."""
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(module)


def build_executable(program: RelaxProgram, target: Target) -> Any:
    """Compile ``program`` for ``target``; kernels are callable by their symbols as well as through the step."""
    return target.compile(program.module, lower_relax)


def export_library(executable: Any, target: Target, path: Path) -> None:
    """Link the executable into the shared library ``path``; an ``FqtError`` if it lacks the device's code."""
    executable.export_library(str(path))
    target.check_library(path)
