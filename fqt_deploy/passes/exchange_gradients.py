"""Let the step exchange each gradient with the other processes as soon as backward has computed it.

Before::

    %loss = ...;  %g = ...;  return (loss, logits, ..., grad/fc.weight=%g)

After::

    %loss = ...;  %s = fqt.process_share(%loss);  %g = ...;  %e = fqt.exchange_gradient(%g, %s)
     return (loss, logits, ..., grad/fc.weight=%e)

What the optimizer does to gradients, sums, norms and clipping, follows the exchange: it is computed from the mean.
Gradients of more than two axes are exchanged as [rows, elements], as the optimizer reads them: the kernel then runs
along whole rows, where the last axis of a filter has no more than a few elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fqt_deploy.core.graph import Emitter, TrainingGraph, following, shape
from fqt_deploy.passes.flat_tensors import as_rows, viewed
from fqt_deploy.passes.pass_base import Pass

fqt = torch.ops.fqt

GRADIENT = "grad/"
"""Beginning of the names of outputs that are gradients."""


@dataclass(frozen=True)
class ExchangeGradients(Pass):
    """Insert one ``exchange_gradient`` behind each gradient, all with the same share."""

    name = "exchange-gradients"

    def run(self, graph: TrainingGraph) -> bool:
        """Rewrite the outputs that are gradients."""
        results = graph.results()
        names = [name for name in results if name.startswith(GRADIENT)]
        if not names:
            return False
        share = Emitter(graph, following(results["loss"]), layer="", phase="backward")(
            fqt.process_share.default, results["loss"]
        )
        places = {node: place for place, node in enumerate(graph.graph.nodes)}
        for name in names:
            layer = name.removeprefix(GRADIENT).rpartition(".")[0]
            anchor = following(max(results[name], share, key=places.__getitem__))
            emit = Emitter(graph, anchor, layer=layer, phase="backward")
            exchanged = emit(fqt.exchange_gradient.default, as_rows(emit, results[name]), share)
            results[name] = viewed(emit, exchanged, shape(results[name]))
        graph.set_results(results)
        return True
