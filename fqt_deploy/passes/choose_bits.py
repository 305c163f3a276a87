"""Give binarized layers activations of several bits: a grid for each, that fits what it reads.

Before::

    layer body = conv2d binarized=True                    # its record; the graph itself stays as it is

After::

    layer body = conv2d binarized=True grid=activationgrid{bits=2 signed=False spacing=0.65}

A layer that reads what cannot be negative, such as a ReLU's result, gets an unsigned grid, all others a signed one.
With 1 bit there are signs instead of a grid, but for unsigned ones, 0 or the spacing, where they are asked for. The
spacing is the best one for normally distributed values, or for their positive part, of the same root mean square as
the layer reads on the example batch; without one, as behind batch normalization. It is rounded to an eighth of a power
of two, so that equal layers share their kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

import numpy as np
from torch import Tensor, fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import ActivationGrid, LayerRecord, TrainingGraph
from fqt_deploy.core.layer_bits import ACTIVATION_BITS, LayerBits
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.example_values import visit_values
from fqt_deploy.passes.non_negative import is_non_negative
from fqt_deploy.passes.pass_base import Pass

SPACINGS = {
    True: {2: 0.996, 3: 0.5864, 4: 0.3354, 8: 0.0308},
    False: {1: 1.731, 2: 0.9211, 3: 0.4997, 4: 0.2728, 8: 0.0236},
}
"""Spacing with the least mean square error, by whether the grid is signed and by bits, in root mean squares: of
normally distributed values for signed grids, of their positive part for unsigned ones.
"""
STEPS_PER_OCTAVE = 8


@dataclass(frozen=True)
class ChooseBits(Pass):
    """Fill ``grid`` of every binarized layer whose activations get more than one bit.

    Attributes:
        activations: bits of an activation.
        bits: layers with bits of their own; the first that matches counts.
        fitted: whether 1 bit of what cannot be negative gets a grid, too.
        decided: grids by the name of their layer's weight, as chosen for this step before: they hold for prediction,
            and for batches of another shape. None where they are to be chosen.
    """

    activations: Annotated[int, ACTIVATION_BITS] = 1
    bits: tuple[LayerBits, ...] = ()
    fitted: bool = False
    decided: tuple[tuple[str, ActivationGrid], ...] | None = None

    name = "choose-bits"

    def run(self, graph: TrainingGraph) -> bool:
        """Fill the records; FQT204 if a glob matches no layer."""
        if self.decided is not None:
            grids = dict(self.decided)
            for record in graph.layers:
                record.grid = grids.get(record.weight) if record.binarized else None
            return False
        self._check_globs(graph.layers)
        inputs: dict[str, list[fx.Node]] = {}
        for product in products_of(graph, "forward"):
            inputs.setdefault(product.meta["record"].weight, []).append(call_of(product).x)
        signed = {weight: not all(map(is_non_negative, nodes)) for weight, nodes in inputs.items()}
        chosen = [record for record in graph.layers if record.weight in inputs and self._has_grid(record, signed)]
        squares = _mean_squares(graph, {x for record in chosen for x in inputs[record.weight]})
        for record in chosen:
            nodes, bits, both = inputs[record.weight], self._bits_of(record), signed[record.weight]
            mean = sum(squares.get(x, 1.0 if both else 0.5) for x in nodes) / len(nodes)
            record.grid = ActivationGrid(bits, both, spacing_of(math.sqrt(mean), bits, both))
        return False

    def _has_grid(self, record: LayerRecord, signed: Mapping[str, bool]) -> bool:
        return self._bits_of(record) > 1 or (self.fitted and not signed[record.weight])

    def _bits_of(self, record: LayerRecord) -> int:
        own = (each.activations for each in self.bits if fnmatchcase(record.path, each.pattern))
        return next(own, self.activations)

    def _check_globs(self, layers: list[LayerRecord]) -> None:
        for each in self.bits:
            if not any(fnmatchcase(record.path, each.pattern) for record in layers):
                raise FqtError(
                    f"--bits {each.pattern!r} matches no layer",
                    code="FQT204",
                    hint=f"the layers are: {', '.join(record.path for record in layers)}",
                )


def spacing_of(root_mean_square: float, bits: int, signed: bool) -> float:
    """The spacing for values of this size, a float32; that for 1 where they are all zero, or not finite."""
    if not math.isfinite(root_mean_square) or root_mean_square <= 0:
        root_mean_square = 1.0
    best = math.log2(root_mean_square * SPACINGS[signed][bits])
    return float(np.float32(2.0 ** (round(best * STEPS_PER_OCTAVE) / STEPS_PER_OCTAVE)))


def _mean_squares(graph: TrainingGraph, nodes: set[fx.Node]) -> dict[fx.Node, float]:
    """The mean square of each of ``nodes`` on the example batch; empty without one."""
    found: dict[fx.Node, float] = {}

    def measure(node: fx.Node, value: Tensor) -> None:
        found[node] = value.double().square().mean().item()

    visit_values(graph, nodes, measure)
    return found
