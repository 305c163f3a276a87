"""Forward products whose weight is no whole parameter: they run in fp32, and the table of layers says so.

Such weights are a part of a parameter (``self.w[0]``, ``self.w.chunk(3)``), one that forward computes of parameters, as
weight normalization does, and parameters whose matrices meet rows of their own, as those of experts and heads do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.graph import TrainingGraph, shape
from fqt_deploy.ops.products.directions import FORWARD, GROUPED, INPUT_GRAD
from fqt_deploy.passes.batch_axis import descendants

aten = torch.ops.aten
fqt = torch.ops.fqt

COMPUTED = "forward computes its weight, as weight normalization does"
PART = "its weight is a part of {name!r}, and 1 bit takes a parameter for each layer: nn.ParameterList"
MOVED = "its weight is a parameter whose axes forward puts in another order"
BATCH = "its weight is multiplied as a batch of matrices, each by rows of its own"

_MOVED = (aten.view.default, aten.permute.default, aten.clone.default, aten.expand.default)


class OtherWeight(NamedTuple):
    """A product of such a weight.

    Attributes:
        product: the node.
        path: what the layer is called: the parameter with its part, or the module.
        reason: why it runs in fp32.
    """

    product: fx.Node
    path: str
    reason: str


def products_of_other_weights(graph: TrainingGraph) -> Iterator[OtherWeight]:
    """All forward products of such weights, in graph order."""
    inputs = zip(graph.inputs, graph.graph.find_nodes(op="placeholder"), strict=True)
    names = {node: name.removeprefix("param/") for name, node in inputs if name.startswith("param/")}
    computed = descendants(graph, *names) - descendants(graph, *graph.batch_inputs())
    for node in graph.calls(*FORWARD, *INPUT_GRAD, *GROUPED, fqt.batch_matmul.default):
        if node.meta["phase"] != "forward" or "record" in node.meta or node.target is fqt.conv2d_input_grad.default:
            continue
        call, of_batches = call_of(node), node.target is fqt.batch_matmul.default
        for operand in (call.a, call.b) if of_batches else (call.w,):
            source, part = _origin(operand)
            if source in names:
                path = names[source].removesuffix(".weight") + part
                yield OtherWeight(
                    node, path, PART.format(name=names[source]) if part else BATCH if of_batches else MOVED
                )
                break
            if operand in computed and not (of_batches and _has_product(operand)):
                yield OtherWeight(node, node.meta["layer"] or _nearest_parameter(operand, names), COMPUTED)
                break


def _origin(node: fx.Node) -> tuple[fx.Node, str]:
    """What ``node`` is a part of, and which part: ``.2`` of ``w[2]``, ``.0:64`` of ``w[:64]``."""
    part = ""
    while True:
        if node.target is aten.select.int:
            call = call_of(node)
            part = f"{_along(call.dim, node)}.{call.index % shape(source_of(node))[call.dim]}{part}"
        elif node.target is aten.slice.Tensor:
            call = call_of(node)
            first, size = call.start or 0, shape(source_of(node))[call.dim]
            first, count = max(first + size, 0) if first < 0 else first, shape(node)[call.dim] * call.step
            part = f"{_along(call.dim, node)}.{first}{f':{first + count}' if count > 1 else ''}{part}"
        elif node.target not in _MOVED:
            return node, part
        node = source_of(node)


def _along(axis: int, node: fx.Node) -> str:
    axis %= len(shape(source_of(node)))
    return f".axis{axis}" if axis else ""


def _has_product(node: fx.Node) -> bool:
    """Whether a layer computed ``node``, as it does learned queries: they are no weights, but a stack of weights is."""
    pending = [node]
    for source in pending:  # grows meanwhile
        if source.target in (*FORWARD, *INPUT_GRAD, fqt.batch_matmul.default):
            return True
        pending += [operand for operand in source.all_input_nodes if operand not in pending]
    return False


def _nearest_parameter(node: fx.Node, names: dict[fx.Node, str]) -> str:
    """The matrix that ``node`` is computed of in the fewest steps: its product lies outside of all modules."""
    pending = [node]
    for source in pending:  # grows meanwhile
        if source in names and len(shape(source)) > 1:
            return names[source].removesuffix(".weight")
        pending += [operand for operand in source.all_input_nodes if operand not in pending]
    return next(names[source] for source in pending if source in names)
