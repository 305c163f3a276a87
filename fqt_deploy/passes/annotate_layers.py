"""Decide which layers run on single bits, and mark every product with its layer and direction.

Before::

    %z = fqt.conv2d(%x, %w, ...)                          # layer features.3

After::

    the same nodes; meta["record"] is the layer's LayerRecord, meta["direction"] is forward, input_grad or weight_grad
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import torch
from torch import fx

from fqt_deploy.core.call import call_of, source_of
from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.graph import LayerRecord, TrainingGraph, behind_views, shape
from fqt_deploy.core.layer_plan import no_match
from fqt_deploy.ops.products.directions import DIRECTIONS, FORWARD, GROUPED, INPUT_GRAD, WEIGHT_GRAD
from fqt_deploy.ops.sample_axes import sample_axes
from fqt_deploy.ops.traits import SampleAxis
from fqt_deploy.passes.batch_axis import descendants
from fqt_deploy.passes.other_weights import COMPUTED, products_of_other_weights
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.zero_padding import padding_before

aten = torch.ops.aten
fqt = torch.ops.fqt

MINIMUM_CONTRACTION = 32
"""A product over fewer elements does not fill one machine word."""
MINIMUM_OUTPUTS = 4
"""With fewer outputs a layer reads nearly as much as it multiplies: packing its input takes as long as its product in
fp32, and words of weights for 16 outputs are mostly empty."""

FROZEN = "its weight is frozen, and would not get used to 1 bit"
"""The reason for layers that ``frozen`` leaves in fp32."""

_PRODUCTS = (*FORWARD, *INPUT_GRAD, *WEIGHT_GRAD, *GROUPED, fqt.batch_matmul.default)
_REARRANGED = (aten.view.default, aten.permute.default, aten.expand.default, aten.clone.default)
"""Ops behind which a weight is still the same weight."""


@dataclass(frozen=True)
class AnnotateLayers(Pass):
    """Fill ``graph.layers`` and mark their products.

    By default every convolution and linear layer is binarized but the first convolution, the layers that make the
    logits, those whose weights are frozen, and those that cost more in 1 bit than they save: with short sums, groups,
    or few outputs.

    Attributes:
        include: module path globs; when given, exactly the matching layers are candidates.
        exclude: module path globs of layers to leave alone.
        frozen: what layers with frozen weights are by default: left in fp32, or taken as others (1-bit).
        binarized: names of the weights that are binarized, as decided for the training step: it holds for prediction
            too. None where it is to be decided.
        turned: those of them that lie [in, out].
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    frozen: Literal["fp32", "1-bit"] = "fp32"
    binarized: tuple[str, ...] | None = None
    turned: tuple[str, ...] = ()

    name = "annotate-layers"

    def run(self, graph: TrainingGraph) -> bool:
        """Build the records in forward order; FQT204 if a glob matches no layer."""
        mark_products(graph)
        if self.binarized is not None:
            for record in graph.layers:
                record.binarized, record.reason = record.weight in self.binarized, "as in the training step"
                record.turned = record.weight in self.turned
            _check_decided(graph, self.binarized, self.turned)
            return False
        self._check_globs(graph.layers)
        if computed := [record.path for record in graph.layers if record.reason == COMPUTED]:
            graph.notes += (
                f"forward computes the weights of {len(computed)} layer{'s' if len(computed) > 1 else ''}, as weight "
                f"normalization does, so that they stay in fp32: {', '.join(computed)}",
            )
        axes, last = sample_axes(graph), last_layers(graph)
        for record in graph.layers:
            if record.weight:  # others run in fp32, and say why
                record.binarized, record.reason = self._decide(record, graph, axes, last)
        if frozen := [record.path for record in graph.layers if record.reason == FROZEN]:
            stay, its = ("s stay", "their") if len(frozen) > 1 else (" stays", "its")
            graph.notes += (
                f"{len(frozen)} layer{stay} in fp32 because {its} weights are frozen; "
                "--frozen 1-bit is for weights that another step trains in 1 bit",
            )
        return False

    def _check_globs(self, layers: list[LayerRecord]) -> None:
        for option, globs in (("--include", self.include), ("--exclude", self.exclude)):
            for glob in globs:
                if not any(fnmatchcase(record.path, glob) for record in layers):
                    raise no_match(option, glob, [record.path for record in layers])

    def _decide(
        self, record: LayerRecord, graph: TrainingGraph, axes: dict[fx.Node, SampleAxis], last: list[LayerRecord]
    ) -> tuple[bool, str]:
        products = [n for n in graph.graph.nodes if n.meta.get("record") is record]
        forward = [n for n in products if n.meta["direction"] == "forward"]
        weight = graph.placeholder(record.weight)
        record.turned = _is_turned(products, weight)
        extents = shape(weight)
        contraction = extents[0] if record.turned else prod(extents[1:])
        excluded = next((g for g in self.exclude if fnmatchcase(record.path, g)), None)
        if excluded is not None:
            return False, f"excluded by {excluded!r}"
        if forward[0].target is fqt.grouped_conv_input_grad.default:
            return False, "a transposed convolution stays in fp32"
        if forward[0].target is fqt.grouped_conv.default and contraction >= MINIMUM_CONTRACTION:
            return False, "a convolution with groups, dilation, one or three axes stays in fp32"
        if not record.turned and all(call_of(n).w is not weight and n.target in INPUT_GRAD for n in forward):
            return False, "its weight is a matrix [in, out] in a view of another shape"
        if not record.turned and any(n.target not in (*FORWARD, *GROUPED) for n in forward):
            return False, "its weight is multiplied as [in, out] in one place and as [out, in] in another"
        if not record.turned and any(shape(call_of(n).w)[0] != extents[0] for n in forward):
            return False, "its weight is viewed in a shape that has other rows"
        if contraction < MINIMUM_CONTRACTION:
            return False, f"a contraction over {contraction} elements is too short to gain"
        from_data = descendants(graph, *graph.batch_inputs("input"))
        if not _rows_are_of_samples(products, axes, from_data):
            return False, "its rows are not grouped by sample"
        if self.include:
            chosen = next((g for g in self.include if fnmatchcase(record.path, g)), None)
            return (True, f"included by {chosen!r}") if chosen else (False, "not included")
        convolutions = [r for r in graph.layers if r.kind == "conv2d"]
        if convolutions and record is convolutions[0]:
            return False, "the first convolution stays in fp32"
        if any(_padded_outside(n, record) for n in forward):
            return False, "zeros are padded in front of it, and no sign is 0: give it the padding, or --include it"
        if record in last:
            return False, f"the last {'convolution' if record.kind == 'conv2d' else 'linear layer'} stays in fp32"
        outputs = extents[1] if record.turned else extents[0]
        if outputs < MINIMUM_OUTPUTS:
            return False, f"with {outputs} output{'s' if outputs > 1 else ''} it has too little work to gain"
        if self.frozen == "fp32" and _is_frozen(products) and _is_trained(graph):
            return False, FROZEN
        return True, "default"


def _is_frozen(products: list[fx.Node]) -> bool:
    """Whether the weight that these products of a layer take has no gradient."""
    return all(node.meta["direction"] != "weight_grad" for node in products)


def _is_trained(graph: TrainingGraph) -> bool:
    """Whether any parameter is trained, be it biases alone; a part of a graph, read from a file, may be without."""
    return any(name.startswith("grad/") for name in graph.outputs)


def _is_turned(products: list[fx.Node], weight: fx.Node) -> bool:
    """Whether every product of a layer takes its weight as a matrix [in, out], that of the forward pass ``x @ w``."""
    spelled = {"forward": INPUT_GRAD, "input_grad": FORWARD, "weight_grad": WEIGHT_GRAD}
    if any(n.target not in spelled[n.meta["direction"]] for n in products):
        return False
    return all(n.meta["direction"] == "weight_grad" or call_of(n).w is weight for n in products)


def _check_decided(graph: TrainingGraph, binarized: Iterable[str], turned: Iterable[str]) -> None:
    """FQT107 if a weight whose products are binarized in training has one that would not be in prediction."""
    for weight in binarized:
        forward = INPUT_GRAD if weight in turned else FORWARD
        pending = [graph.placeholder(weight)] if weight in graph.inputs else []
        while pending:
            for user in pending.pop().users:
                if user.target in _REARRANGED:
                    pending.append(user)
                elif user.target in _PRODUCTS and user.target not in forward:
                    raise FqtError(
                        f"in evaluation mode {weight.removeprefix('param/')!r} is multiplied in another way than in "
                        "training, where it is the weight of a 1-bit layer",
                        code="FQT107",
                        hint="leave its layer in fp32 with --exclude, or write forward so that both modes are alike",
                        node=user,
                    )


def _padded_outside(product: fx.Node, record: LayerRecord) -> bool:
    """Whether zeros in front of a convolution are those of another module, not its own ``padding``."""
    zeros = padding_before(product)
    owner = record.weight.removeprefix("param/").rpartition(".")[0]
    if zeros is None or not any(map(any, zeros.extents)):
        return False
    return zeros.node.meta["layer"] not in (record.path, owner)


def _rows_are_of_samples(products: list[fx.Node], axes: dict[fx.Node, SampleAxis], from_data: set[fx.Node]) -> bool:
    """Whether every product reads samples on its leading axis, or, as the first step of a recurrence, no data."""
    rows = [source_of(product) for product in products if product.meta["direction"] != "input_grad"]
    places = [axes.get(x) for x in rows if x in axes or x in from_data]
    return bool(places) and all(where is not None and where.axis == 0 for where in places)


def mark_products(graph: TrainingGraph) -> None:
    """Give every product of a layer its record and direction, and ``graph.layers`` the records in forward order.

    ``x @ W`` with W [in, out] is a product of rows with W itself in forward, and with its transpose in backward.
    """
    owners = {graph.placeholder(n): n for n in graph.inputs if n.startswith("param/")}
    by_weight: dict[str, LayerRecord] = {}
    for node in graph.calls(*FORWARD, *INPUT_GRAD, *GROUPED):
        weight = owners.get(behind_views(call_of(node).w))
        if weight is None or node.target is fqt.conv2d_input_grad.default:
            continue
        if node.meta["phase"] != "forward":
            continue
        record = by_weight.get(weight)
        if record is None:
            path = weight.removeprefix("param/").removesuffix(".weight")
            record = by_weight[weight] = _record(node, path, weight, len(by_weight))
            graph.layers.append(record)
        node.meta.update(record=record, direction="forward", layer=record.path)
    for node in graph.calls(*FORWARD, *INPUT_GRAD):
        record = by_weight.get(owners.get(behind_views(call_of(node).w), ""))
        if record is not None and node.meta["phase"] != "forward":
            node.meta.update(record=record, direction="input_grad", layer=record.path)
    for weight, record in by_weight.items():
        for node in _weight_gradients(graph, weight):
            node.meta.update(record=record, direction="weight_grad", layer=record.path)
    _mark_other_weights(graph)


def _mark_other_weights(graph: TrainingGraph) -> None:
    """Add records of products whose weight is no whole parameter; their gradients belong to no layer."""
    known = {record.path: record for record in graph.layers}
    for product, path, reason in list(products_of_other_weights(graph)):
        while path in known and known[path].weight:  # a parameter that another product takes as it is
            path += "'"
        if path not in known:
            known[path] = _record(product, path, "", len(known))
            known[path].reason = reason
        product.meta.update(record=known[path], direction="forward")
    marked = (node.meta.get("record") for node in graph.graph.nodes)
    graph.layers[:] = {record.path: record for record in marked if record is not None}.values()


def last_layers(graph: TrainingGraph) -> list[LayerRecord]:
    """The layers that make the logits: met first on the way back from these, and not on the way to each other.

    A part of a graph, read from a file, may have no logits, and so no last layers.
    """
    logits = graph.results().get("logits")
    reached = [] if logits is None else _layers_before([logits])
    earlier = {record.path for product in reached for record in _all_layers_before(product)}
    return [product.meta["record"] for product in reached if product.meta["record"].path not in earlier]


def _layers_before(nodes: list[fx.Node]) -> list[fx.Node]:
    """The forward products that are found going back from ``nodes``, each way up to the first."""
    found, pending, seen = [], list(nodes), set(nodes)
    while pending:
        node = pending.pop()
        if node.meta.get("direction") == "forward":
            found.append(node)
            continue
        pending += [a for a in node.all_input_nodes if a not in seen]
        seen.update(node.all_input_nodes)
    return found


def _all_layers_before(product: fx.Node) -> list[LayerRecord]:
    """The layers that ``product`` depends on, but for its own."""
    found: set[fx.Node] = set()
    pending = [product]
    while pending:
        new = set(_layers_before(list(pending.pop().all_input_nodes))) - found
        found |= new
        pending += new
    return [node.meta["record"] for node in found if node.meta["record"] is not product.meta["record"]]


def _record(node: fx.Node, path: str, weight: str, index: int) -> LayerRecord:
    linear = node.target in (fqt.linear.default, fqt.linear_input_grad.default, fqt.batch_matmul.default)
    kind: Literal["conv2d", "linear"] = "linear" if linear else "conv2d"
    location = SourceLocation.of(node)
    source = location.portable if location else None
    return LayerRecord(path, kind, index, source=source, weight=weight)


def _weight_gradients(graph: TrainingGraph, weight: str) -> list[fx.Node]:
    """Weight-gradient products that flow into this weight's gradient output, through views and additions only."""
    gradient = "grad/" + weight.removeprefix("param/")
    if gradient not in graph.outputs:
        return []
    found: list[fx.Node] = []
    pending = [graph.output(gradient)]
    while pending:
        node = pending.pop()
        if node.target in WEIGHT_GRAD:
            found.append(node)
        elif node.target in (aten.view.default, aten.permute.default, aten.add.Tensor):
            pending.extend(node.all_input_nodes)
    return found


def products_of(graph: TrainingGraph, direction: str) -> list[fx.Node]:
    """All products in ``direction`` of layers that are to be binarized, in graph order."""
    return [
        n
        for n in graph.graph.nodes
        if n.meta.get("direction") == direction and n.meta["record"].binarized and n.target in DIRECTIONS[direction]
    ]


def call_key(product: fx.Node) -> tuple[str, int | None]:
    """What the products of one call of a layer have in common: a module may be called more than once.

    A call that has no gradients has the autograd number of what was called before it, which may be the layer itself: of
    several forward products with one key the backward products belong to the first.
    """
    record: LayerRecord = product.meta["record"]
    return record.path, product.meta.get("seq_nr")
