"""Run every kernel of a compiled step on inputs taken from the PyTorch reference of the same step, and compare.

Integer, bit and boolean results must be equal; floating point results agree within a relative error of the whole array,
or within what rounding alone changes in it: a sum of terms that cancel has no digit that two orders of summation share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fqt_deploy.codegen.kernel_function import definition_of
from fqt_deploy.codegen.kernel_grouping import Kernel
from fqt_deploy.codegen.to_relax import RelaxProgram, destinations
from fqt_deploy.compiler.kernel_runner import KernelRunner
from fqt_deploy.compiler.rounding_noise import SLACK, bits_at_edges, rounding_noise
from fqt_deploy.compiler.verify_passes import PassCheck
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.aten.reductions import Reduction
from fqt_deploy.ops.lib.fp32_products import FP32_PRODUCTS
from fqt_deploy.ops.op import FqtOp

TOLERANCE = 1e-4
"""Relative error allowed in floating point results whose op states none."""
TF32_TOLERANCE = 2e-3
"""The same for fp32 products with ``--tf32``: their operands keep 11 bits."""


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


@dataclass(frozen=True)
class KernelCase:
    """One kernel call with the operands and results of the PyTorch reference.

    Attributes:
        info: the call.
        operands: operands in the kernel's order.
        in_place: for each result the number of the operand that it is written over, or None.
        expected: results.
        tolerance: relative error allowed in floating point results.
        floor: norm below which a floating point result is rounding noise.
        noise: measures what rounding changes in each result; asked only where the floor does not explain an error.
        edges: measures which bits of each result that is no floating point one rounding may change; asked only where
            some differ.
    """

    info: KernelInfo
    operands: tuple[Tensor, ...]
    in_place: tuple[int | None, ...]
    expected: tuple[Tensor, ...]
    tolerance: float
    floor: float
    noise: Callable[[], list[float]]
    edges: Callable[[], list[np.ndarray[Any, Any] | None]]

    def compare(self, results: Sequence[np.ndarray[Any, Any]]) -> VerificationRow:
        """The row of the table that compares the kernel's ``results`` with the expected ones."""
        floating = [e.dtype.is_floating_point for e in self.expected]
        bounds = [self.tolerance if f else 0.0 for f in floating]
        floors = [self.floor] * len(self.expected)
        errors = self._errors(results, floors)
        if any(f and error > self.tolerance for f, error in zip(floating, errors, strict=True)):
            floors = [max(self.floor, SLACK * noise / self.tolerance) for noise in self.noise()]
            errors = self._errors(results, floors)
        if any(not f and error > 0 for f, error in zip(floating, errors, strict=True)):
            errors = self._errors(results, floors, self.edges())
        ok = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
        info, tolerance = self.info, self.tolerance if any(floating) else None
        return VerificationRow(info.layer, info.phase, info.op, max(errors), tolerance, ok)

    def _errors(
        self,
        results: Sequence[np.ndarray[Any, Any]],
        floors: list[float],
        edges: Sequence[np.ndarray[Any, Any] | None] | None = None,
    ) -> list[float]:
        rows = zip(results, self.expected, floors, edges or [None] * len(results), strict=True)
        return [_compare(result, _array(expected), floor, bits) for result, expected, floor, bits in rows]


def verify_numerics(
    graph: TrainingGraph,
    program: RelaxProgram,
    runner: KernelRunner,
    example_inputs: Sequence[Tensor],
    options: CompileOptions,
) -> VerificationReport:
    """Interpret ``graph`` in PyTorch and check each kernel where its root is computed.

    Args:
        graph: the lowered training graph.
        program: its kernels.
        runner: calls the compiled kernels.
        example_inputs: the tensors of a batch, in the order of the graph's signature.
        options: seed and learning rates.
    """
    found = {
        root: case.compare(_run(runner, case)) for root, case in kernel_cases(graph, program, example_inputs, options)
    }
    return VerificationReport(tuple(found[call.root] for call in program.calls))


def kernel_cases(
    graph: TrainingGraph, program: RelaxProgram, example_inputs: Sequence[Tensor], options: CompileOptions
) -> Iterator[tuple[fx.Node, KernelCase]]:
    """Interpret ``graph`` in PyTorch and return the root of each kernel and its case, in the order of the graph.

    Args:
        graph: the lowered training graph.
        program: its kernels.
        example_inputs: the tensors of a batch, in the order of the graph's signature.
        options: seed and learning rates.
    """
    checks = {call.root: (info, call) for info, call in zip(program.kernels, program.calls, strict=True)}
    written = destinations(graph)
    last_use = _last_uses(graph, checks)
    values: dict[fx.Node, Any] = _inputs(graph, example_inputs, options)
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                result = node.target(*args, **kwargs)
                values[node] = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, result)
                if node in checks:
                    yield node, _case(*checks[node], written.get(node, []), values, options)
            for dead in last_use.get(node, ()):
                values.pop(dead, None)


def _inputs(graph: TrainingGraph, example: Sequence[Tensor], options: CompileOptions) -> dict[fx.Node, Any]:
    given = {
        **{spec.name: tensor for spec, tensor in zip(graph.signature, example, strict=True)},
        "seed": torch.tensor(options.seed),
        "lr": torch.tensor(options.optimizer.lrs()),
    } | {name: tensor.initial.detach() for name, tensor in graph.state.items()}
    return {graph.placeholder(name): given[name] for name in graph.inputs}


def _last_uses(graph: TrainingGraph, checks: dict[fx.Node, tuple[KernelInfo, Kernel]]) -> dict[fx.Node, list[fx.Node]]:
    """The values that nothing needs after each node, by node."""
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


def _case(
    info: KernelInfo, kernel: Kernel, written: list[fx.Node], values: dict[fx.Node, Any], options: CompileOptions
) -> KernelCase:
    expected = values[kernel.root]
    expected = list(expected) if isinstance(expected, (tuple, list)) else [expected]
    number = {leaf: i for i, leaf in enumerate(kernel.leaves)}
    in_place = [number.get(node) for node in written] or [None] * len(expected)
    op = definition_of(kernel.root)
    leaves = {leaf: values[leaf] for leaf in kernel.leaves}
    return KernelCase(
        info=info,
        operands=(*leaves.values(), *(torch.tensor(n, dtype=torch.int32) for n in kernel.numbers().values())),
        in_place=tuple(in_place),
        expected=tuple(expected),
        tolerance=max(
            TOLERANCE,
            op.tolerance if issubclass(op, FqtOp) else 0.0,
            TF32_TOLERANCE if getattr(options.target_options, "tf32", False) and info.op in FP32_PRODUCTS else 0.0,
        ),
        floor=_cancellation_floor(kernel, values) if issubclass(op, Reduction) else 0.0,
        noise=lambda: rounding_noise(kernel.root, leaves),
        edges=lambda: bits_at_edges(kernel.root, leaves),
    )


def _run(runner: KernelRunner, case: KernelCase) -> list[np.ndarray[Any, Any]]:
    arrays = [_array(operand) for operand in case.operands]
    count, results = len(arrays), []
    for position, expected in zip(case.in_place, case.expected, strict=True):
        results.append(len(arrays) if position is None else position)
        if position is None:
            arrays.append(np.zeros_like(_array(expected)))
    return runner.run(case.info.symbol, arrays, [*range(count), *results], results)


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return np.array(tensor.detach().numpy(), order="C")


def _cancellation_floor(kernel: Kernel, values: dict[fx.Node, Any]) -> float:
    """Norm that a reduction would have if its terms had random signs; sums that cancel to less are rounding noise."""
    floating = [values[leaf] for leaf in kernel.leaves if values[leaf].dtype.is_floating_point]
    largest = max(floating, key=Tensor.numel, default=None)
    return float(largest.double().norm()) if largest is not None else 0.0


def _compare(
    actual: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    floor: float,
    edges: np.ndarray[Any, Any] | None = None,
) -> float:
    """Error of floating point arrays relative to their norm, at least ``floor``.

    Of others it is the share that differs, in more than the bits ``edges``.
    """
    if expected.dtype.kind != "f":
        differ = actual != expected if edges is None else ((actual ^ expected) & ~edges) != 0
        return float(differ.mean()) if expected.size else 0.0
    if not np.isfinite(expected).all():
        return float((~np.isclose(actual, expected, equal_nan=True)).mean())
    scale = max(float(np.linalg.norm(expected.astype(np.float64))), floor)
    error = float(np.linalg.norm(actual.astype(np.float64) - expected))
    return error / scale if scale else error
