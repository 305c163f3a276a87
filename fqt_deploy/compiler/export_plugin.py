"""Kernels for the functions of an exported ONNX file: a folder that ONNX Runtime loads as custom ops.

``plugin.so`` registers the ops, ``kernels.so`` is the step as an artifact has it, whose kernels they call, and
``kernels.txt`` says which; TVM's runtime libraries lie beside them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fqt_deploy.codegen.build import build_library
from fqt_deploy.codegen.to_relax import to_relax
from fqt_deploy.compiler.compile_model import LoweredModel
from fqt_deploy.compiler.onnx_kernels import onnx_kernels
from fqt_deploy.core.buffer import buffers_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.export.kernel_calls import KernelCall
from fqt_deploy.ops.lib.onnx_body import CHECK
from fqt_deploy.packaging.runtime_libraries import runtime_libraries
from fqt_deploy.targets.base import Target

PLUGIN = Path(__file__).parents[1] / "export" / "plugin" / "plugin.so"
"""The library that ``make onnx-plugin`` builds: the same for all models."""

_TABLE = "kernels.txt"


def export_plugin(lowered: LoweredModel, target: Target, output: Path) -> None:
    """Compile the kernels of both graphs and write the folder ``output``, whole or not at all.

    Raises:
        FqtError: FQT202 for another machine's target, FQT508 if the folder holds something else or cannot be written,
            FQT509 if the plug-in is not built.
    """
    check_plugin_output(output)
    if not target.toolchain.is_native:
        raise FqtError(f"the plug-in is built for this machine, not for {target.name}", code="FQT202")
    libraries = runtime_libraries(target.toolchain)
    program = to_relax(lowered.train, lowered.predict)
    steps = [onnx_kernels(graph) for graph in (lowered.train, lowered.predict)]
    lines = [f"{CHECK} {step.digest}" for step in steps] + [_line(call) for step in steps for call in step.calls]
    table = "".join(f"{line}\n" for line in dict.fromkeys(lines))
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as workspace:
            new, old = Path(workspace) / "new", Path(workspace) / "old"
            new.mkdir(mode=0o755)
            build_library(program, target, new / "kernels.so")
            (new / _TABLE).write_text(table)
            for library in (PLUGIN, libraries.runtime, libraries.ffi):
                shutil.copyfile(library, new / library.name)
            (new / "licenses").mkdir()
            for name, license_text in (libraries.runtime_licenses | libraries.ffi_licenses).items():
                shutil.copyfile(license_text, new / "licenses" / name)
            if output.exists():
                output.rename(old)
            new.rename(output)
    except OSError as error:
        raise FqtError(f"cannot write {output}: {error.strerror or error}", code="FQT508") from None


def check_plugin_output(output: Path) -> None:
    """FQT508 if ``output`` exists and is no plug-in, FQT509 if there is no plug-in to copy."""
    if not PLUGIN.is_file():
        raise FqtError("the plug-in for ONNX Runtime is not built", code="FQT509", hint="run make onnx-plugin")
    if output.exists() and not (output / _TABLE).is_file():
        raise FqtError(f"{output} exists and is not a plug-in", code="FQT508", hint="choose another output")


def _line(call: KernelCall) -> str:
    """The line of a call's function in ``kernels.txt``."""
    group = call.group
    written = [
        f"{value.dtype}:{_extents(buffer.value.shape)}:{_extents(value.shape)}"
        for value, buffer in zip(call.results, buffers_of(group.root), strict=True)
    ]
    return " ".join(
        [
            call.name,
            group.symbol,
            _listed(group.numbers),
            _listed(f"{value.dtype}:{_extents(value.shape)}" for value in call.operands),
            _listed(
                f"{i}:{_extents(leaf.meta['val'].shape)}" for i, leaf in zip(call.positions, group.leaves, strict=True)
            ),
            _listed(written),
        ]
    )


def _listed(items: Iterable[str]) -> str:
    return ";".join(items) or "-"


def _extents(shape: Iterable[int]) -> str:
    return ",".join(str(int(extent)) for extent in shape)
