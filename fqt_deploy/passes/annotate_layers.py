"""Decide which layers run on single bits, and mark every product with its layer and direction.

Before::

    %z = fqt.conv2d(%x, %w, ...)                          # layer features.3

After::

    the same nodes; meta["record"] is the layer's LayerRecord, meta["direction"] is forward, input_grad or weight_grad
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.graph import LayerRecord, TrainingGraph, behind_views, shape
from fqt_deploy.passes.pass_base import Pass

aten = torch.ops.aten
fqt = torch.ops.fqt

FORWARD = (fqt.conv2d.default, fqt.linear.default)
INPUT_GRAD = (fqt.conv2d_input_grad.default, fqt.linear_input_grad.default)
WEIGHT_GRAD = (fqt.conv2d_weight_grad.default, fqt.linear_weight_grad.default)

GROUPED = (fqt.grouped_conv.default, fqt.grouped_conv_input_grad.default)
"""Forward products of layers that stay in fp32: convolutions with groups or dilation, of one axis or three, and (the
second) transposed ones."""

MINIMUM_CONTRACTION = 32
"""A product over fewer elements does not fill one machine word."""


@dataclass(frozen=True)
class AnnotateLayers(Pass):
    """Fill ``graph.layers`` and mark their products.

    By default every convolution and linear layer is binarized but the first convolution and the last linear layer.

    Attributes:
        include: module path globs; when given, exactly the matching layers are candidates.
        exclude: module path globs of layers to leave alone.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    name = "annotate-layers"

    def run(self, graph: TrainingGraph) -> bool:
        """Build the records in forward order; FQT204 if a glob matches no layer."""
        owners = {graph.placeholder(n): n for n in graph.inputs if n.startswith("param/")}
        by_weight: dict[str, LayerRecord] = {}
        for node in graph.calls(*FORWARD, *GROUPED):
            weight = owners.get(_weight_of(node))  # type: ignore[arg-type]
            if weight is None:
                continue
            record = by_weight.get(weight)
            if record is None:
                record = by_weight[weight] = _record(node, weight, len(by_weight))
                graph.layers.append(record)
            node.meta.update(record=record, direction="forward", layer=record.path)
        for node in graph.calls(*INPUT_GRAD):
            if (record := by_weight.get(owners.get(node.args[1], ""))) is not None:  # type: ignore[call-overload]
                node.meta.update(record=record, direction="input_grad", layer=record.path)
        for weight, record in by_weight.items():
            for node in _weight_gradients(graph, weight):
                node.meta.update(record=record, direction="weight_grad", layer=record.path)
        self._check_globs(graph.layers)
        for record in graph.layers:
            record.binarized, record.reason = self._decide(record, graph)
        return False

    def _check_globs(self, layers: list[LayerRecord]) -> None:
        for option, globs in (("--include", self.include), ("--exclude", self.exclude)):
            for glob in globs:
                if not any(fnmatchcase(record.path, glob) for record in layers):
                    raise FqtError(
                        f"{option} {glob!r} matches no layer",
                        code="FQT204",
                        hint=f"the layers are: {', '.join(record.path for record in layers)}",
                    )

    def _decide(self, record: LayerRecord, graph: TrainingGraph) -> tuple[bool, str]:
        products = [n for n in graph.calls(*FORWARD, *GROUPED) if n.meta.get("record") is record]
        contraction = 1
        for extent in shape(products[0].args[1])[1:]:  # type: ignore[arg-type]
            contraction *= extent
        excluded = next((g for g in self.exclude if fnmatchcase(record.path, g)), None)
        if excluded is not None:
            return False, f"excluded by {excluded!r}"
        if products[0].target is fqt.grouped_conv_input_grad.default:
            return False, "a transposed convolution stays in fp32"
        if contraction < MINIMUM_CONTRACTION:
            return False, f"a contraction over {contraction} elements is too short to gain"
        if products[0].target is fqt.grouped_conv.default:
            return False, "a convolution with groups, dilation, one or three axes stays in fp32"
        if record.kind == "linear" and any(shape(n)[0] % graph.batch for n in products):
            return False, "its rows are not grouped by sample"
        if self.include:
            chosen = next((g for g in self.include if fnmatchcase(record.path, g)), None)
            return (True, f"included by {chosen!r}") if chosen else (False, "not included")
        convolutions = [r for r in graph.layers if r.kind == "conv2d"]
        linears = [r for r in graph.layers if r.kind == "linear"]
        if convolutions and record is convolutions[0]:
            return False, "the first convolution stays in fp32"
        if linears and record is linears[-1]:
            return False, "the last linear layer stays in fp32"
        return True, "default"


def _weight_of(node: fx.Node) -> fx.Node | None:
    """The weight of a forward product; None for a product of the step's backward part that looks like one."""
    weight = call_of(node).w
    if node.target not in GROUPED:
        return weight  # type: ignore[no-any-return]
    return behind_views(weight) if node.meta.get("phase", "forward") == "forward" else None


def _record(node: fx.Node, weight: str, index: int) -> LayerRecord:
    path = weight.removeprefix("param/").removesuffix(".weight")
    kind = "linear" if node.target is fqt.linear.default else "conv2d"
    location = SourceLocation.of(node)
    source = str(location) if location else None
    return LayerRecord(path, kind, index, source=source, weight=weight)  # type: ignore[arg-type]


def _weight_gradients(graph: TrainingGraph, weight: str) -> list[fx.Node]:
    """Weight-gradient products that flow into this weight's gradient output, through views and additions only."""
    gradient = "grad/" + weight.removeprefix("param/")
    if gradient not in graph.outputs:
        return []
    found: list[fx.Node] = []
    pending: list[object] = [graph.output(gradient)]
    while pending:
        node = pending.pop()
        if not isinstance(node, fx.Node):
            continue
        if node.target in WEIGHT_GRAD:
            found.append(node)
        elif node.target in (aten.view.default, aten.permute.default, aten.add.Tensor):
            pending.extend(node.args)
    return found


def products_of(graph: TrainingGraph, direction: str) -> list[fx.Node]:
    """All products in ``direction`` of layers that are to be binarized, in graph order."""
    return [
        n
        for n in graph.graph.nodes
        if n.meta.get("direction") == direction and n.meta["record"].binarized and n.target in _DIRECTIONS[direction]
    ]


_DIRECTIONS = {"forward": FORWARD, "input_grad": INPUT_GRAD, "weight_grad": WEIGHT_GRAD}
