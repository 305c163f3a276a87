"""Append the optimizer, so that one graph is the whole training step.

Before::

    inputs:  x, y, param/..., buffer/...
    outputs: loss, logits, buffer/..., grad/...

After::

    inputs:  x, y, seed, lr, param/..., buffer/..., adam_m/..., adam_v/..., step
    %t = aten.add(%step, 1)
    %p, %m, %v = fqt.adam_update(%param, %adam_m, %adam_v, %grad, %lr, %t, group, ...)   # all as [rows, elements]
    outputs: loss, logits, buffer/..., param/..., adam_m/..., adam_v/..., step
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Emitter, StateTensor, TrainingGraph, shape
from fqt_deploy.core.optimizer import SGD, Adam, AdamW, Optimizer
from fqt_deploy.passes.pass_base import Pass

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
        count = emit(aten.add.Tensor, step, 1)
        for name, gradient in gradients.items():
            path = name.removeprefix("grad/")
            emit.meta["layer"] = path.rpartition(".")[0]
            values |= self._update(graph, emit, path, gradient, count)
        values["step"] = count
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

    def _update(
        self, graph: TrainingGraph, emit: Emitter, path: str, gradient: fx.Node, count: fx.Node
    ) -> dict[str, fx.Node]:
        parameter = graph.placeholder(f"param/{path}")
        extents = shape(parameter)
        flat = [extents[0], math.prod(extents[1:])] if len(extents) > 2 else extents

        def viewed(node: fx.Node, size: list[int]) -> fx.Node:
            return node if shape(node) == size else emit(aten.view.default, node, size)

        rates, group = graph.placeholder("lr"), self.optimizer.group_of(path)
        zeros = torch.zeros_like(graph.state[f"param/{path}"].initial)

        def moment(kind: str) -> tuple[str, fx.Node]:
            name = f"{kind}/{path}"
            return name, _add_state(graph, StateTensor(name, "optimizer", zeros.clone()))

        o = self.optimizer
        gradient = viewed(gradient, flat)
        if isinstance(o, (Adam, AdamW)):
            state = [(f"param/{path}", parameter), moment("adam_m"), moment("adam_v")]
            options: tuple[Any, ...] = (group, *o.betas, o.eps, o.weight_decay, isinstance(o, AdamW))
            result = emit(
                fqt.adam_update.default, *[viewed(n, flat) for _, n in state], gradient, rates, count, *options
            )
        elif isinstance(o, SGD) and o.momentum:
            state = [(f"param/{path}", parameter), moment("sgd_momentum")]
            options = (group, o.momentum, o.nesterov, o.weight_decay)
            result = emit(
                fqt.sgd_momentum_update.default, *[viewed(n, flat) for _, n in state], gradient, rates, count, *options
            )
        else:
            updated = emit(fqt.sgd_update.default, viewed(parameter, flat), gradient, rates, group, o.weight_decay)
            return {f"param/{path}": viewed(updated, extents)}
        return {name: viewed(emit.item(result, i), extents) for i, (name, _) in enumerate(state)}


def _add_state(graph: TrainingGraph, tensor: StateTensor) -> fx.Node:
    graph.state[tensor.name] = tensor
    return _add_placeholder(graph, tensor.name, tensor.initial, at=len(graph.inputs))


def _add_placeholder(graph: TrainingGraph, name: str, like: Any, at: int) -> fx.Node:
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    after = nodes[at - 1]
    with graph.graph.inserting_after(after):
        node = graph.graph.placeholder(name.replace("/", "_").replace(".", "_"))
    mode = after.meta["val"].fake_mode
    with mode:
        node.meta["val"] = torch.empty(like.shape, dtype=like.dtype)
    node.meta.update(layer="", phase="forward")
    graph.inputs.insert(at, name)
    return node
