"""Select samples again and again on the way back: fewer where a sample has more gradient elements.

Before, here a network of two stages, gradients of 8192 elements a sample in the upper and 32768 in the lower::

    %g  = fqt.linear_input_grad(%glogits, %w)                    # [N, C], gradient of the classifier's input
    ...                                                          # backward of the upper stage, N samples
    %gx = fqt.conv2d_input_grad(%gy, %wb, ...)                   # gradient of the lower stage's output
    ...                                                          # backward of the lower stage, N samples

After, with N >= K >= M::

    %index, %_, %weight = fqt.select_sampled(norm(%g), key, K)
    ...                                                          # K of N samples, as behind select-once
    %among, %_, %again = fqt.select_sampled(norm(%gx), key, M)   # M of the K
    %lower = fqt.gather_rows(%gx, %among) * %again
    ...                                                          # samples gather_rows(%index, %among) of the batch

A layer whose gradient has ``e`` elements a sample runs on ``K ~ 1 / sqrt(e)`` samples. The variance that selection adds
to the gradient of a weight falls with ``1 / K``, so this makes its sum over the layers least for a given number of
kept elements, ``sum(e K)``, which is that of a single selection: one bit for each element of the whole batch.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import TrainingGraph, shape
from fqt_deploy.ops.products.directions import WEIGHT_GRAD
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.batch_axis import descendants
from fqt_deploy.passes.select_once import Selection, SelectOnce
from fqt_deploy.passes.shrink_backward import ShrinkPlan


@dataclass(frozen=True)
class SelectNested(SelectOnce):
    """Shrink backward in stages, to as many gradient elements as ``select-once`` keeps.

    Attributes:
        bits: factor by which the elements shrink.
        exponent: how kept samples fall with the elements of a gradient; 0 is a single selection.
    """

    exponent: float = 0.5

    name = "select-nested"
    selection = "nested"

    def selections(self, graph: TrainingGraph, plan: ShrinkPlan) -> list[Selection]:
        """One at each place that separates layers and where the number of samples falls."""
        places = selection_places(graph, plan)
        ends = [*places[1:], None]
        sizes = [_gradient_sizes(graph, here, end) for here, end in zip(places, ends, strict=True)]
        kept = kept_samples(sizes, graph.batch, self.bits, self.exponent)
        return [Selection(*pair) for pair in zip(places, kept, strict=True)]


def kept_samples(sizes: list[list[int]], batch: int, bits: float, exponent: float = 0.5) -> list[int]:
    """How many samples each part of backward runs on.

    Args:
        sizes: gradient elements of one sample, for each quantized layer of each part, in backward order.
        batch: samples of a step.
        bits: factor by which the elements shrink.
        exponent: see ``SelectNested``.

    Returns:
        Numbers of samples that never rise, from the batch down to 1, ``~ (layers / elements) ** exponent``. They keep
        ``batch / bits`` of the elements of a sample, or less by what rounding down takes.
    """
    budget = batch / bits * sum(map(sum, sizes))

    def shares(factor: float) -> list[float]:
        found, last = [], float(batch)
        for part in sizes:
            last = min(last, factor * (len(part) / sum(part)) ** exponent) if part else last
            found.append(last)
        return found

    low, high = 0.0, batch * float(max(map(sum, sizes), default=1)) ** exponent
    for _ in range(64):
        middle = (low + high) / 2
        kept = sum(share * sum(part) for share, part in zip(shares(middle), sizes, strict=True))
        low, high = (middle, high) if kept <= budget else (low, middle)
    return [max(1, int(share + 1e-6)) for share in shares(low)]


def selection_places(graph: TrainingGraph, plan: ShrinkPlan) -> list[fx.Node]:
    """The root, and behind it a gradient between each two layers on which alone everything behind it depends.

    Where several would do, as before and after a pooling's backward, the one with the fewest elements.
    """
    root, rows = plan.root, plan.places.keys() - {plan.root}
    products = [n for n in graph.calls(*WEIGHT_GRAD) if "record" in n.meta and call_of(n).g in plan.places]
    smallest: dict[int, fx.Node] = {}
    for node in _dominators(root, call_of(products[-1]).g, rows, graph) if products else []:
        behind = descendants(graph, node)
        left = [p for p in products if p in behind]
        if not 0 < len(left) < len(products) or not _separates(node, behind, rows, left):
            continue
        if len(left) not in smallest or prod(shape(node)) < prod(shape(smallest[len(left)])):
            smallest[len(left)] = node
    return [root, *(smallest[count] for count in sorted(smallest, reverse=True))]


def _dominators(root: fx.Node, end: fx.Node, rows: Set[fx.Node], graph: TrainingGraph) -> list[fx.Node]:
    """The single-output nodes between ``root`` and ``end`` that every path through ``rows`` passes, in graph order."""
    parent, depth = {root: root}, {root: 0}
    for node in graph.graph.nodes:
        if node not in rows:
            continue
        here, *others = (a for a in node.all_input_nodes if a in parent)
        for other in others:
            while here is not other:
                if depth[here] >= depth[other]:
                    here = parent[here]
                else:
                    other = parent[other]
        parent[node], depth[node] = here, depth[here] + 1
    chain = []
    while end is not root:
        chain.append(end)
        end = parent[end]
    return [node for node in reversed(chain) if isinstance(node.meta["val"], torch.Tensor)]


def _separates(node: fx.Node, behind: Set[fx.Node], rows: Set[fx.Node], left: list[fx.Node]) -> bool:
    """Whether ``node`` is the only gradient that ``behind`` reads, and lies behind every product of other layers."""
    layers = {product.meta["layer"] for product in left}
    if any(n.meta.get("direction") == "input_grad" and n.meta["layer"] not in layers for n in behind):
        return False
    return not any(a in rows and a not in behind and a is not node for n in behind for a in n.all_input_nodes)


def _gradient_sizes(graph: TrainingGraph, here: fx.Node, following: fx.Node | None) -> list[int]:
    """Elements that a sample has in the gradient of each quantized layer between two places."""
    between = descendants(graph, here)
    if following is not None:
        between -= descendants(graph, following)
    products = [n for n in products_of(graph, "weight_grad") if n in between]
    return [prod(shape(call_of(n).g)) // graph.batch for n in products]
