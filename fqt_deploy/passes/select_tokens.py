"""Select rows of a gradient at each linear layer that has several rows of a sample, and run backward on these.

Before, here a block ``x + fc2(gelu(fc1(norm(x))))`` of a transformer with N = batch * tokens rows::

    %g   = ...                                                  # [N, C], gradient of the block's output
    %gh  = fqt.linear_input_grad(%g * %a, %w2)
    %gw2 = fqt.linear_weight_grad(%h, %g)
    %g1  = aten.gelu_backward(view(%gh, [batch, tokens, F]), %y)
    ...                                                         # fc1 and the norm, on N rows
    %gx  = aten.add(%g, %gn)

After, with k = round(tokens / bits) kept rows of each sample, K = batch * k::

    %index, %slot, %weight = fqt.select_sampled(norms of the rows of %g, key, k, parts=batch)
    %k   = fqt.gather_rows(%g, %index) * %weight                # [K, C]
    %gh  = fqt.linear_input_grad(%k * %a, %w2)
    %gw2 = fqt.linear_weight_grad(fqt.gather_rows(%h, %index), %k)
    %g1  = aten.gelu_backward(view(%gh, [batch, k, F]), fqt.gather_rows(%y, %index))
    ...                                                         # fc1 and the norm, on K rows
    %gx  = aten.add(%g, fqt.scatter_rows(%gn, %slot))

Kept rows are scaled by one over their inclusion probability, so that the gradient of each branch is unbiased. What goes
around a branch, as a residual connection does, is not pruned. Layers that read the same input, such as query, key and
value, keep the same rows, drawn by all their gradients. A layer whose gradient comes from kept rows alone, such as
``fc1``, selects no more. Attention's backward goes over the kept queries. Large values that forward computes from a
product, such as what an activation function reads, are computed again of the kept rows, and need not be there for all.
What rows add to the gradient of a weight has less in common than what samples add: of as many rows the variance is a
small part of that of selecting samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from torch import fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph, behind_views, shape
from fqt_deploy.core.options import GRADIENT_BITS
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.batch_axis import descendants
from fqt_deploy.passes.pass_base import Pass
from fqt_deploy.passes.shrink_to_tokens import Branch, ShrinkToTokens

fqt = torch.ops.fqt


SHARE_OF_TOKENS = 0.9
"""Least part of the gradient elements of layers on 1 bit that belong to layers with several rows of a sample, where
nobody has asked for tokens: what is left over selects as ``sampled`` does, which has more variance than others."""


@dataclass(frozen=True)
class SelectTokens(Pass):
    """Keep ``round(tokens / bits)`` rows of each sample of the gradients of linear layers that have several.

    Attributes:
        bits: factor by which the rows are reduced.
        required: whether a model without such a layer is an error; else it is left alone, as is one in which other
            layers have more than a tenth of the gradient elements.
    """

    bits: Annotated[int, GRADIENT_BITS] = 4
    required: bool = True

    name = "select-tokens"
    exact = False

    def run(self, graph: TrainingGraph) -> bool:
        """Insert the selections, and rewrite what follows from kept rows alone; FQT205 if there is no place for one."""
        if graph.selection is not None or not (self.required or _share_of_tokens(graph) >= SHARE_OF_TOKENS):
            return False
        number = 0
        while (branch := _next_branch(graph)) is not None:
            ShrinkToTokens(graph, branch, self.bits).run(number)
            number += 1
        if number:
            graph.selection = "tokens"
        elif self.required:
            raise FqtError(
                "cannot select tokens: no layer on 1 bit has several rows of a sample, as linear layers of "
                "transformers have",
                code="FQT205",
                hint="use --agp nested, or --agp sampled",
            )
        return number > 0


def _share_of_tokens(graph: TrainingGraph) -> float:
    """Which part of the gradient elements of all layers on 1 bit can be selected by tokens."""
    products = products_of(graph, "weight_grad")
    elements = {product: prod(shape(call_of(product).g)) for product in products}
    of_tokens = sum(count for product, count in elements.items() if _has_tokens(graph, product))
    return of_tokens / max(1, sum(elements.values()))


def _has_tokens(graph: TrainingGraph, product: fx.Node) -> bool:
    """Whether the gradient that a weight gradient is computed from has several rows of a sample."""
    (rows, *_), linear = shape(call_of(product).g), product.target is fqt.linear_weight_grad.default
    return linear and rows % graph.batch == 0 and rows > graph.batch


def _next_branch(graph: TrainingGraph) -> Branch | None:
    """The first branch in backward order whose layers have several rows of a sample and have not selected yet."""
    inputs: dict[tuple[fx.Node, int], list[fx.Node]] = {}
    for product in products_of(graph, "weight_grad"):
        call = call_of(product)
        if not _has_tokens(graph, product) or "kept" in call.g.meta:
            continue
        # one input may be read as rows of different lengths, as patches of two sizes are
        members = inputs.setdefault((behind_views(call_of(call.x).x), shape(call.g)[0]), [])
        if call.g not in members:
            members.append(call.g)
    if not inputs:
        return None
    first, *others = next(iter(inputs.values()))
    behind = descendants(graph, first)
    # layers cannot select together if the gradient of one depends on another's, as where one is called twice
    together = [g for g in others if g not in behind and not any(g in descendants(graph, o) for o in others)]
    return Branch((first, *together))
