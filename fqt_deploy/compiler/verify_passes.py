"""Check rewrites that promise the same numbers: run each new part of the graph on the values of the old one.

A pass keeps most nodes. Where an operand of a kept node was rewritten, the node is computed again and must give its old
value, which is what later nodes then read. So every rewritten region is checked on equal inputs, and differences of
rounding are not amplified by the signs and quantizers behind it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.capture.tracing import module_mode
from fqt_deploy.compiler.rounding_noise import SLACK, rounding_noise, unsure_elements
from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.model_copy import copy_of_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.aten.reductions import Reduction
from fqt_deploy.ops.aten.replaced_layers import RANDOM
from fqt_deploy.ops.op import op_of
from fqt_deploy.ops.optimizers.update_op import UpdateOp
from fqt_deploy.passes.optimizer_updates import zero_state

TOLERANCE = 5e-3
"""Relative error allowed in floating point values, in the norm of a tensor. A wrong pass is off by its whole size.

Passes change the order of sums; a deep stack of batch normalizations amplifies that in backward, and with a small
batch one activation within rounding of zero is a visible share of a gradient: 1.5e-3 in VGG16 with 8 samples.
"""
VANISHING = 1e-4
"""A gradient below this share of all gradients together is held to that: some are zero but for rounding noise."""
FLIPS = 1e-3
"""Share of integers and booleans that may differ: where they are made of floats that lie within rounding of a bound."""
MISSED = 0.1
"""Unsure elements that the runs with other roundings did not find, for each that they found."""
UPDATE_TOLERANCE = 1e-2
"""Tolerance of a parameter that Adam has updated: it divides a gradient by its own size, rounding noise by its own too.

Its gradient is held to ``TOLERANCE`` in the moments.
"""


@dataclass(frozen=True)
class PassCheck:
    """The check of one exact pass on the numbers of the example batch.

    Attributes:
        name: name of the pass; ``capture`` compares the captured graph with eager PyTorch.
        compared: values that were computed in two ways.
        error: largest relative error of floating point values, or share of others that differ.
        where: the value with this error.
        ok: whether all are within their bound.
    """

    name: str
    compared: int
    error: float
    where: str
    ok: bool


@dataclass
class PassVerifier:
    """An observer of a pipeline.

    Attributes:
        exact: names of the passes that keep the numbers.
        given: values of the inputs by name.
        checks: one a pass that had something to compare.
    """

    exact: frozenset[str]
    given: Mapping[str, Tensor]
    checks: list[PassCheck] = field(default_factory=list)
    _values: dict[fx.Node, Any] = field(default_factory=dict)
    _calls: dict[fx.Node, Any] = field(default_factory=dict)
    _outputs: dict[str, Any] = field(default_factory=dict)

    def start(self, graph: TrainingGraph) -> None:
        """Compute all values of ``graph`` before the first pass."""
        self._run(graph, None)

    def observe(self, name: str, graph: TrainingGraph, _seconds: float) -> None:
        """Compute what the pass changed, and compare it if the pass is exact."""
        errors: dict[str, tuple[float, bool]] = {}
        self._run(graph, errors if name in self.exact else None)
        if errors:
            where = max(errors, key=lambda key: (not errors[key][1], errors[key][0]))
            ok = all(good for _, good in errors.values())
            self.checks.append(PassCheck(name, len(errors), errors[where][0], where, ok))

    def check_capture(self, source: ModelSource) -> None:
        """Compare the outputs of the captured graph with eager PyTorch; not possible where dropout draws numbers."""
        if any(node.target in RANDOM for node in self._values):
            return
        errors = {}
        eager = _eager(source)
        whole = math.hypot(*(_norm(g) for name, g in eager.items() if name.startswith("grad/")))
        for name, expected in eager.items():
            floor = VANISHING * whole if name.startswith("grad/") else 0.0
            error = _relative(self._outputs[name], expected, max(_norm(expected), floor))
            errors[name] = error, error <= TOLERANCE
        where = max(errors, key=lambda key: errors[key][0])
        ok = all(good for _, good in errors.values())
        self.checks.append(PassCheck("capture", len(errors), errors[where][0], where, ok))

    def _run(self, graph: TrainingGraph, errors: dict[str, tuple[float, bool]] | None) -> None:
        """Compute the values of ``graph``, reusing those of the pass before; fill ``errors`` if given."""
        values: dict[fx.Node, Any] = {}
        inputs = iter(graph.inputs)
        with torch.no_grad():
            for node in graph.graph.nodes:
                if node.op == "placeholder":
                    name = next(inputs)
                    values[node] = self._values.get(node, self.given[name])
                elif node.op == "call_function":
                    values[node] = self._value(node, values, errors)
        outputs = graph.results()
        if errors is not None:
            for name in [n for n in outputs if n in self._outputs]:
                _compare(errors, name, outputs[name], values, self._outputs[name], self._values)
        self._values = values
        self._calls = {n: (n.target, n.args, n.kwargs) for n in values}
        self._outputs = {name: values[node] for name, node in outputs.items()}

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], errors: dict[str, tuple[float, bool]] | None) -> Any:
        known = node in self._values
        same = known and self._calls[node] == (node.target, node.args, node.kwargs)
        if known and node.target in RANDOM:
            return self._values[node]
        if same and all(values[operand] is self._values.get(operand) for operand in node.all_input_nodes):
            return self._values[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        result = node.target(*args, **kwargs)  # type: ignore[operator]
        result = torch.utils._pytree.tree_map_only(Tensor, Tensor.contiguous, result)  # as code generation lays it out
        if not known or errors is None:
            return result
        values[node] = result
        _compare(errors, node.name, node, values, self._values[node], self._values)
        return self._values[node]


def _compare(
    errors: dict[str, tuple[float, bool]],
    name: str,
    node: fx.Node,
    values: dict[fx.Node, Any],
    old: Any,
    kept: Mapping[fx.Node, Any],
) -> None:
    """Note the error of ``node``'s value against ``old``.

    Args:
        errors: the errors by name of the value; added to.
        name: the name of the value.
        node: what computes it now.
        values: the values of the nodes up to it.
        old: the value before the pass.
        kept: values of the nodes that were there before the pass, which are computed alike.
    """
    new = values[node]
    if new is old:
        return
    for i, (a, b) in enumerate(zip(_tensors(new), _tensors(old), strict=True)):
        key = name if isinstance(new, Tensor) else f"{name}[{i}]"
        if b.dtype.is_floating_point:
            bound = UPDATE_TOLERANCE if _is_adams_parameter(node, i) else TOLERANCE
            scale = max(_norm(b), _cancellation_floor(node, values, i))
            error = _relative(a, b, scale)
            if bound < error < float("inf"):
                noise = rounding_noise(node, {n: v for n, v in kept.items() if values.get(n) is v})
                error = _relative(a, b, max(scale, SLACK * noise[i] / bound))
            errors[key] = error, error <= bound
        else:
            error, bound = _share(a != b), FLIPS
            if error > bound:
                unsure = unsure_elements(node, {n: v for n, v in kept.items() if values.get(n) is v})[i]
                error, bound = _share((a != b) & ~unsure), FLIPS + MISSED * _share(unsure)
            errors[key] = error, error <= bound


def _share(condition: Tensor) -> float:
    """The share of elements for which a condition holds."""
    return float(condition.double().mean()) if condition.numel() else 0.0


def _is_adams_parameter(node: fx.Node, position: int) -> bool:
    """Whether result ``position`` of ``node`` is the parameter that Adam or its like updates."""
    while node.target in (torch.ops.aten.view.default, operator.getitem):
        position = call_of(node).index if node.target is operator.getitem else position
        node = source_of(node)
    op = op_of(node)
    return op is not None and issubclass(op, UpdateOp) and op.scales_gradient and position == 0


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]


def _relative(actual: Tensor, expected: Tensor, scale: float) -> float:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    error = float((actual.double() - expected.double()).masked_fill(actual == expected, 0.0).norm())
    return error / scale if scale else error


def _norm(x: Tensor) -> float:
    """The norm of the finite elements: masks of attention are infinite."""
    return float(x.double().masked_fill(~x.isfinite(), 0.0).norm())


def _cancellation_floor(node: fx.Node, values: dict[fx.Node, Any], position: int) -> float:
    """Norm that a sum would have if its terms had random signs; sums that cancel to less are rounding noise."""
    if node.target is torch.ops.fqt.batch_norm_backward.default and position > 0:  # gradients of weight and bias
        return _norm(values[node.all_input_nodes[0]])
    while node.target is torch.ops.aten.view.default:
        node = node.all_input_nodes[0]
    op = op_of(node)
    if op is None or not issubclass(op, Reduction):
        return 0.0
    operands = [values[operand] for operand in node.all_input_nodes]
    return max((_norm(o) for o in operands if isinstance(o, Tensor)), default=0.0)


def _eager(source: ModelSource) -> dict[str, Tensor]:
    """Loss, gradients and updated buffers of one forward and backward pass in eager PyTorch."""
    model = copy_of_model(source.module)
    with module_mode(model, training=True), torch.enable_grad():
        loss, _ = source.loss_and_outputs(model, [given.clone() for given in source.example_inputs])
        loss.backward()
    gradients = {f"grad/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


def graph_inputs(graph: TrainingGraph, source: ModelSource, options: CompileOptions) -> dict[str, Tensor]:
    """Values of every input that a training graph of ``source`` may have at any stage."""
    state = {name: tensor.initial.detach() for name, tensor in graph.state.items()}
    parameters = {n.removeprefix("param/"): t for n, t in state.items() if n.startswith("param/")}
    moments = {f"grad_sum/{path}": torch.zeros_like(t) for path, t in parameters.items()}
    for path, parameter in parameters.items():
        moments |= zero_state(options.optimizer, path, parameter)
    averages = {f"ema/{path}": t for path, t in parameters.items()}
    metrics = {f"metric/{name}": torch.zeros(()) for name in options.optimizer.metrics}
    scalars = {"seed": torch.tensor(options.seed), "lr": torch.tensor(options.optimizer.lrs()), "step": torch.tensor(0)}
    batch = {spec.name: tensor for spec, tensor in zip(graph.signature, source.example_inputs, strict=True)}
    return {**batch, **scalars, **moments, **averages, **metrics, **state}
