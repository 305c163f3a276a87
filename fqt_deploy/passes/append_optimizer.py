"""Append the optimizer, so that one graph is the whole training step.

Before::

    inputs:  x, y, param/..., buffer/...
    outputs: loss, logits, buffer/..., grad/...

After::

    inputs:  x, y, seed, lr, param/..., buffer/..., step, adam_m/..., adam_v/...
    %t = aten.add(%step, 1)
    %p, %m, %v = fqt.adam_update(%param, %adam_m, %adam_v, %grad, %lr, %t, group, ...)   # all as [rows, elements]
    outputs: loss, logits, buffer/..., param/..., adam_m/..., adam_v/..., step

What is done to gradients comes in between, where the optimizer asks for it: their sum over several steps
(``grad_sum/...``), their norm (``metric/grad_norm``), clipping. The average of each parameter (``ema/...``) follows its
update.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, StateTensor, TrainingGraph, meta_tensor, shape
from fqt_deploy.core.optimizer import Adam, Optimizer
from fqt_deploy.core.parameter_group import matches_any
from fqt_deploy.passes.flat_tensors import as_rows, viewed
from fqt_deploy.passes.optimizer_updates import has_coded_moments, update_of, zero_state
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.update import Operands

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class AppendOptimizer(Pass):
    """Replace every gradient output by the updated parameter and its optimizer state.

    Attributes:
        optimizer: which update, with its hyperparameters; learning rates are an input of the step.
    """

    optimizer: Optimizer = Adam()  # noqa: RUF009

    name = "append-optimizer"

    def run(self, graph: TrainingGraph) -> bool:
        """Add the scalar inputs, the optimizer state and one update per gradient; FQT204 for a group of nothing."""
        self._check_groups(graph)
        rates = torch.zeros(len(self.optimizer.lrs()))
        batch = len(graph.signature)
        _add_placeholder(graph, "seed", torch.zeros((), dtype=torch.int64), at=batch)
        _add_placeholder(graph, "lr", rates, at=batch + 1)
        step = _add_state(graph, StateTensor("step", "counter", torch.zeros((), dtype=torch.int64)))
        output = graph.output_node()
        emit = Emitter(graph, output, layer="", phase="optimizer")
        values = graph.results()
        gradients = {n: values.pop(n) for n in graph.outputs if n.startswith("grad/")}
        count = emit.behind(step)(aten.add.Tensor, step, 1)
        paths = [name.removeprefix("grad/") for name in gradients]
        for path in paths:
            emit.meta["layer"] = path.rpartition(".")[0]
            gradients[f"grad/{path}"] = self._summed(graph, emit, path, gradients[f"grad/{path}"], count, values)
        emit.meta["layer"] = ""
        factor = self._clip_factor(graph, emit, gradients, values)
        for number, path in enumerate(paths):
            emit.meta["layer"] = path.rpartition(".")[0]
            gradient = self._clipped(emit, gradients[f"grad/{path}"], factor)
            values |= self._update(graph, emit, path, gradient, count, number)
        values["step"] = count
        wanted = isinstance(self.optimizer, Adam) and self.optimizer.moment_bits == 8
        if wanted and not has_coded_moments(graph):
            graph.notes += (
                "all moments stay in fp32: --moment-bits 8 is for parameters of 4096 elements or more in rows of a "
                "multiple of 16",
            )
        graph.set_results(values)
        return True

    def _check_groups(self, graph: TrainingGraph) -> None:
        parameters = [name.removeprefix("grad/") for name in graph.outputs if name.startswith("grad/")]
        used = {self.optimizer.group_of(name) for name in parameters}
        for i, group in enumerate(self.optimizer.groups, start=1):
            if i not in used:
                raise FqtError(
                    f"parameter group {group.pattern!r} matches no parameter that an earlier group leaves",
                    code="FQT204",
                    hint=f"the parameters are: {', '.join(parameters)}",
                )

        for glob in self.optimizer.no_decay:
            if not any(matches_any(name, (glob,)) for name in parameters):
                raise FqtError(
                    f"no parameter matches {glob!r}, which no_decay names",
                    code="FQT204",
                    hint=f"the parameters are: {', '.join(parameters)}",
                )

    def _summed(
        self,
        graph: TrainingGraph,
        emit: Emitter,
        path: str,
        gradient: fx.Node,
        count: fx.Node,
        values: dict[str, fx.Node],
    ) -> fx.Node:
        """The gradient as [rows, elements], summed up over several steps if there are any."""
        gradient = as_rows(emit, gradient)
        if self.optimizer.accumulate == 1:
            return gradient
        name = f"grad_sum/{path}"
        total = _add_state(graph, StateTensor(name, "optimizer", _zeros(graph, path)))
        summed = emit(fqt.accumulate_gradient.default, as_rows(emit, total), gradient, count, self.optimizer.accumulate)
        values[name] = viewed(emit, summed, shape(total))
        return summed

    def _clip_factor(
        self, graph: TrainingGraph, emit: Emitter, gradients: dict[str, fx.Node], values: dict[str, fx.Node]
    ) -> fx.Node | None:
        """What clipping by the norm scales all gradients by; also writes the norms that the optimizer is asked for."""
        o = self.optimizer
        norm = _norm(emit, [*gradients.values()]) if gradients and (o.clip_norm is not None or o.metrics) else None
        if norm is None:
            return None
        parameters = [as_rows(emit, graph.placeholder(name.replace("grad/", "param/", 1))) for name in gradients]
        for metric in dict.fromkeys(o.metrics):
            name = f"metric/{metric}"
            _add_state(graph, StateTensor(name, "metric", torch.zeros(())))
            values[name] = norm if metric == "grad_norm" else _norm(emit, parameters)
        if o.clip_norm is None:
            return None
        # As torch.nn.utils.clip_grad_norm_ has it.
        inverse = emit(aten.reciprocal.default, emit(aten.add.Tensor, norm, 1e-6))
        return emit(aten.clamp_max.default, emit(aten.mul.Tensor, inverse, float(o.clip_norm)), 1.0)

    def _clipped(self, emit: Emitter, gradient: fx.Node, factor: fx.Node | None) -> fx.Node:
        if factor is not None:
            gradient = emit(aten.mul.Tensor, gradient, factor)
        bound = self.optimizer.clip_value
        return gradient if bound is None else emit(aten.clamp.default, gradient, -float(bound), float(bound))

    def _update(
        self, graph: TrainingGraph, emit: Emitter, path: str, gradient: fx.Node, count: fx.Node, number: int
    ) -> dict[str, fx.Node]:
        """The new values of parameter ``number`` and of all state beside it; ``gradient`` is [rows, elements]."""
        parameter, every = graph.placeholder(f"param/{path}"), self.optimizer.accumulate
        state = {f"param/{path}": parameter}
        for name, zero in zero_state(self.optimizer, path, graph.state[f"param/{path}"].initial).items():
            state[name] = _add_state(graph, StateTensor(name, "optimizer", zero))
        flat, *moments = [as_rows(emit, node) for node in state.values()]
        rates, group = graph.placeholder("lr"), self.optimizer.group_of(path)
        operands = Operands(flat, tuple(moments), gradient, rates, group, count, every, number)
        results = update_of(self.optimizer, path, shape(parameter)).emit(emit, operands)
        values = {name: viewed(emit, new, shape(old)) for (name, old), new in zip(state.items(), results, strict=True)}
        if self.optimizer.ema is not None:
            name = f"ema/{path}"
            start = graph.state[f"param/{path}"].initial.detach().clone()
            average = _add_state(graph, StateTensor(name, "optimizer", start))
            averaged = emit(
                fqt.average_parameter.default, as_rows(emit, average), results[0], count, self.optimizer.ema, every
            )
            values[name] = viewed(emit, averaged, shape(parameter))
        return values


def _norm(emit: Emitter, tensors: list[fx.Node]) -> fx.Node:
    """The norm of all elements of ``tensors``, each [rows, elements] or [elements]; a float32 scalar."""
    total = None
    for tensor in tensors:
        square = emit(aten.mul.Tensor, tensor, tensor)
        for _ in shape(tensor):  # axis by axis: rows in parallel, and short sums
            square = emit(aten.sum.dim_IntList, square, [len(shape(square)) - 1])
        total = square if total is None else emit(aten.add.Tensor, total, square)
    assert total is not None
    return emit(aten.sqrt.default, total)


def _zeros(graph: TrainingGraph, path: str) -> torch.Tensor:
    return torch.zeros_like(graph.state[f"param/{path}"].initial)


def _add_state(graph: TrainingGraph, tensor: StateTensor) -> fx.Node:
    graph.state[tensor.name] = tensor
    return _add_placeholder(graph, tensor.name, tensor.initial, at=len(graph.inputs))


def _add_placeholder(graph: TrainingGraph, name: str, like: Any, at: int) -> fx.Node:
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    after = nodes[at - 1]
    with graph.graph.inserting_after(after):
        node = graph.graph.placeholder(re.sub(r"\W", "_", name))
    node.target = node.name  # two names may become one: "a.b" and "a-b"
    node.meta["val"] = meta_tensor(like.shape, like.dtype)
    node.meta.update(layer="", phase="forward")
    graph.inputs.insert(at, name)
    return node
