"""Run every kernel of a compiled step on inputs taken from the PyTorch reference of the same step, and compare.

Integer, bit and boolean results must be equal; floating point results agree within a relative error of the whole array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fqt_deploy.codegen.kernel_grouping import Kernel
from fqt_deploy.codegen.to_relax import RelaxProgram, destinations
from fqt_deploy.compiler.kernel_runner import KernelRunner
from fqt_deploy.compiler.verify_passes import PassCheck
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.aten_reductions import REDUCTIONS
from fqt_deploy.passes.decompose_composites import spec_of

TOLERANCE = 1e-4
"""Relative error allowed in floating point results whose op states none."""


@dataclass(frozen=True)
class VerificationRow:
    """One kernel call against its reference.

    Attributes:
        layer: module path.
        direction: ``forward``, ``input_grad``, ``weight_grad``, ``backward`` or ``optimizer``.
        op: what the kernel computes.
        error: relative error of floating point results; of exact results, the share of elements that differ.
        tolerance: what is allowed; None where results must be equal.
        ok: whether the call passes.
    """

    layer: str
    direction: str
    op: str
    error: float
    tolerance: float | None
    ok: bool


@dataclass(frozen=True)
class VerificationReport:
    """The kernels in execution order, and the passes that promise the same numbers.

    Attributes:
        rows: one a kernel call.
        passes: one a pass.
    """

    rows: tuple[VerificationRow, ...]
    passes: tuple[PassCheck, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every kernel and every pass is within its tolerance."""
        return all(row.ok for row in self.rows) and all(check.ok for check in self.passes)


def verify_numerics(
    graph: TrainingGraph,
    program: RelaxProgram,
    runner: KernelRunner,
    example_inputs: tuple[Tensor, Tensor],
    options: CompileOptions,
) -> VerificationReport:
    """Interpret ``graph`` in PyTorch and check each kernel where its root is computed.

    Args:
        graph: the lowered training graph.
        program: its kernels.
        runner: calls the compiled kernels.
        example_inputs: x and y.
        options: seed and learning rates.
    """
    checks = {call.root: (info, call) for info, call in zip(program.kernels, program.calls, strict=True)}
    written = destinations(graph)
    last_use = _last_uses(graph, checks)
    values: dict[fx.Node, Any] = _inputs(graph, example_inputs, options)
    found: dict[fx.Node, VerificationRow] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                result = node.target(*args, **kwargs)
                values[node] = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, result)
                if node in checks:
                    found[node] = _check(runner, *checks[node], written.get(node, []), values)
            for dead in last_use.get(node, ()):
                values.pop(dead, None)
    return VerificationReport(tuple(found[call.root] for call in program.calls))


def _inputs(graph: TrainingGraph, example: tuple[Tensor, Tensor], options: CompileOptions) -> dict[fx.Node, Any]:
    given = {
        "x": example[0],
        "y": example[1],
        "seed": torch.tensor(options.seed),
        "lr": torch.tensor(options.optimizer.lrs()),
    } | {name: tensor.initial.detach() for name, tensor in graph.state.items()}
    return {graph.placeholder(name): given[name] for name in graph.inputs}


def _last_uses(graph: TrainingGraph, checks: dict[fx.Node, tuple[KernelInfo, Kernel]]) -> dict[fx.Node, list[fx.Node]]:
    """For each node, the values that nothing needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        needed = list(node.all_input_nodes)
        if node in checks:
            needed += checks[node][1].leaves
        for operand in (node, *needed):
            last[operand] = node
    by_user: dict[fx.Node, list[fx.Node]] = {}
    for operand, user in last.items():
        by_user.setdefault(user, []).append(operand)
    return by_user


def _check(
    runner: KernelRunner, info: KernelInfo, kernel: Kernel, written: list[fx.Node], values: dict[fx.Node, Any]
) -> VerificationRow:
    expected = values[kernel.root]
    expected = list(expected) if isinstance(expected, (tuple, list)) else [expected]
    position = {leaf: i for i, leaf in enumerate(kernel.leaves)}
    arrays = [_array(values[leaf]) for leaf in kernel.leaves]
    targets: list[fx.Node | None] = [*written] or [None] * len(expected)
    outputs: list[int] = []
    for target, value in zip(targets, expected, strict=True):
        if target in position:  # what is written in place may also be an operand
            outputs.append(position[target])
        else:
            outputs.append(len(arrays))
            arrays.append(np.zeros_like(_array(value)))
    results = runner.run(info.symbol, arrays, [*range(len(kernel.leaves)), *outputs], outputs)
    floor = _cancellation_floor(kernel, values) if kernel.root.target in REDUCTIONS else 0.0
    exact = [_compare(r, _array(e), floor) for r, e in zip(results, expected, strict=True)]
    spec = spec_of(kernel.root)
    tolerance = max(TOLERANCE, spec.tolerance if spec is not None else 0.0)
    floating = any(e.dtype.is_floating_point for e in expected)
    ok = all(
        error <= (tolerance if e.dtype.is_floating_point else 0.0) for error, e in zip(exact, expected, strict=True)
    )
    return VerificationRow(info.layer, info.phase, info.op, max(exact), tolerance if floating else None, ok)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.array(tensor.detach().numpy(), order="C")


def _cancellation_floor(kernel: Kernel, values: dict[fx.Node, Any]) -> float:
    """Norm that a reduction would have if its terms had random signs; sums that cancel to less are rounding noise."""
    floating = [values[leaf] for leaf in kernel.leaves if values[leaf].dtype.is_floating_point]
    largest = max(floating, key=Tensor.numel, default=None)
    return float(largest.double().norm()) if largest is not None else 0.0


def _compare(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], floor: float) -> float:
    """Error of floating point arrays relative to their norm, at least ``floor``; share that differs of others."""
    if expected.dtype.kind != "f":
        return float((actual != expected).mean()) if expected.size else 0.0
    if not np.isfinite(expected).all():
        return float((~np.isclose(actual, expected, equal_nan=True)).mean())
    scale = max(float(np.linalg.norm(expected.astype(np.float64))), floor)
    error = float(np.linalg.norm(actual.astype(np.float64) - expected))
    return error / scale if scale else error
