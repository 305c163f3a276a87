"""Kernels for the ``ai.fqt`` functions of an exported ONNX file: a folder that ONNX Runtime loads as custom ops.

``plugin.so`` registers the ops, ``kernels.so`` holds one compiled kernel for each distinct call, ``kernels.txt`` says
which; TVM's runtime libraries lie beside them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fqt_deploy.codegen.build import build_functions, export_library
from fqt_deploy.codegen.kernel_function import kernel_function
from fqt_deploy.codegen.kernel_grouping import Kernel
from fqt_deploy.compiler.compile_model import LoweredModel
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.onnx_body import kernel_key
from fqt_deploy.ops.op import FqtOp, op_of
from fqt_deploy.packaging.runtime_libraries import runtime_libraries
from fqt_deploy.targets.base import Target

PLUGIN = Path(__file__).parents[1] / "export" / "plugin" / "plugin.so"
"""The library that ``make onnx-plugin`` builds: the same for all models."""

_TABLE = "kernels.txt"


@dataclass(frozen=True)
class _Call:
    """The first of the calls that one kernel serves.

    Attributes:
        op: its definition.
        node: the call.
    """

    op: type[FqtOp]
    node: fx.Node

    def line(self, key: str, symbol: str) -> str:
        """The call's line in ``kernels.txt``."""
        call = self.op.bound(self.node.args, self.node.kwargs)
        operands = [getattr(call, name) for name in call.operands()]
        positions = ",".join(str(operands.index(leaf)) for leaf in self.node.all_input_nodes)
        result: Any = self.node.meta["val"]
        results = result if isinstance(result, (tuple, list)) else (result,)
        return " ".join([key, self.op.name, symbol, positions or "-", *map(_tensor, results)])


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
    calls = _distinct_calls((*lowered.train.graph.nodes, *lowered.predict.graph.nodes))
    symbols = {key: f"fqt_{call.op.name}_{i}" for i, (key, call) in enumerate(calls.items())}
    functions = {
        symbols[key]: target.schedule(
            kernel_function(Kernel(call.node, (), tuple(call.node.all_input_nodes)), built_in=True)
        )
        for key, call in calls.items()
    }
    executable = build_functions(functions, target.tvm_target)
    table = "".join(call.line(key, symbols[key]) + "\n" for key, call in calls.items())
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as workspace:
            new, old = Path(workspace) / "new", Path(workspace) / "old"
            new.mkdir(mode=0o755)
            export_library(executable, new / "kernels.so", target)
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


def _distinct_calls(nodes: Iterable[fx.Node]) -> dict[str, _Call]:
    """The distinct calls, one for each kernel that the ``fqt`` ops among ``nodes`` need, by key."""
    found: dict[str, _Call] = {}
    for node in nodes:
        op = op_of(node)
        if op is not None and issubclass(op, FqtOp):
            values: Any = fx.map_arg(node.args, lambda a: a.meta["val"])
            found.setdefault(kernel_key(op.name, values), _Call(op, node))
    return found


def _tensor(value: torch.Tensor) -> str:
    return f"{dtype_name(value.dtype)}:{','.join(str(int(d)) for d in value.shape)}"
