"""Give binarized layers activations of several bits: a grid for each, that fits what it reads.

Before::

    layer body = conv2d binarized=True                    # its record; the graph itself stays as it is

After::

    layer body = conv2d binarized=True grid=activationgrid{bits=2 signed=False spacing=0.65}

A layer that reads what cannot be negative, such as a ReLU's result, gets an unsigned grid, all others a signed one.
With 1 bit there are signs instead of a grid, but for unsigned ones, 0 or the spacing, where they are asked for. With 1
or 2 bits an unsigned grid is also chosen where it is clearly closer to what the layer reads on the example batch:
behind GELU, SiLU, Softplus, or a PReLU that has learned to keep what is negative small, half of a signed grid is
hardly used. The spacing is the best one for normally distributed values, or for their positive part, of the same root
mean square as the layer reads on the example batch; without one, as behind batch normalization. What a layer reads is
what the quantized layers before it compute, which is smaller than what they computed in full precision: where no
normalization makes up for it, a fifth or more with every layer. The spacing is rounded to an eighth of a power of two,
so that equal layers share their kernels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor, fx

from fqt_deploy.core.call import call_of
from fqt_deploy.core.graph import ActivationGrid, LayerRecord, TrainingGraph
from fqt_deploy.core.layer_bits import ACTIVATION_BITS, LayerBits
from fqt_deploy.core.layer_plan import no_match
from fqt_deploy.ops.lib.levels import codes_of, unit, weight_grid
from fqt_deploy.passes.annotate_layers import products_of
from fqt_deploy.passes.example_values import code_counts, plain_convolution_by_onednn, visit_values
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
FEW_BITS = 2
"""The most bits with which a signed grid that is half used costs much."""
CLEARLY = 0.8
"""An unsigned grid must leave less than this part of what a signed one leaves unexplained."""


@dataclass(frozen=True)
class ChooseBits(Pass):
    """Fill ``grid`` of every binarized layer whose activations get more than one bit.

    Attributes:
        activations: bits of an activation.
        bits: layers with bits of their own; the first that matches counts.
        fitted: whether 1 bit gets a grid, too, where that is an unsigned one.
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
        products = products_of(graph, "forward")
        for product in products:
            inputs.setdefault(product.meta["record"].weight, []).append(call_of(product).x)
        counts: dict[str, Counter[int]] = {}
        values = self._measured(graph, products, counts)
        for record in graph.layers:
            if record.weight in inputs:
                record.grid = self._grid(record, inputs[record.weight], values)
        # the calls of a layer before its last were computed with the grid of those inputs that were known
        graph.code_counts = {weight: codes for weight, codes in counts.items() if len(inputs[weight]) == 1}
        return False

    def _grid(
        self, record: LayerRecord, inputs: list[fx.Node], values: Mapping[fx.Node, ReadValues]
    ) -> ActivationGrid | None:
        """The grid of a layer that reads ``inputs``, one for each of its calls; None where it reads signs."""
        return fitting_grid(inputs, values, self._bits_of(record), fitted=self.fitted)

    def _measured(
        self, graph: TrainingGraph, products: list[fx.Node], counts: dict[str, Counter[int]]
    ) -> dict[fx.Node, ReadValues]:
        """What each product reads on the example batch, where those before it are quantized; empty without one.

        ``counts`` gets the number of each layer's codes, which costs little once they are there.
        """
        found: dict[fx.Node, ReadValues] = {}
        bits = {call_of(product).x: self._bits_of(product.meta["record"]) for product in products}

        def measure(node: fx.Node, value: Tensor) -> None:
            if node not in bits:  # a product, which has counted its codes
                return
            found[node] = ReadValues.of(value, bits[node])

        def quantized(product: fx.Node) -> Callable[..., Tensor]:
            def compute(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
                record = product.meta["record"]
                grid = self._grid(record, [call_of(product).x], found)
                codes = codes_on(grid, x)
                counts[record.weight] = code_counts(codes)
                return product_of_codes(product, grid, codes, w, *rest)

            return compute

        visit_values(graph, {*bits, *products}, measure, instead={product: quantized(product) for product in products})
        return found

    def _bits_of(self, record: LayerRecord) -> int:
        own = (each.activations for each in self.bits if fnmatchcase(record.path, each.pattern))
        return next(own, self.activations)

    def _check_globs(self, layers: list[LayerRecord]) -> None:
        for each in self.bits:
            if not any(fnmatchcase(record.path, each.pattern) for record in layers):
                raise no_match("--bits", each.pattern, [record.path for record in layers])


def spacing_of(root_mean_square: float, bits: int, signed: bool) -> float:
    """The spacing for values of this size, a float32; that for 1 where they are all zero, or not finite."""
    if not math.isfinite(root_mean_square) or root_mean_square <= 0:
        root_mean_square = 1.0
    best = math.log2(root_mean_square * SPACINGS[signed][bits])
    return float(np.float32(2.0 ** (round(best * STEPS_PER_OCTAVE) / STEPS_PER_OCTAVE)))


@dataclass(frozen=True)
class ReadValues:
    """The values that a layer reads on the example batch, as far as its grid depends on them.

    Attributes:
        mean_square: of all elements.
        lopsided: whether an unsigned grid of few bits is clearly closer to them than a signed one.
    """

    mean_square: float
    lopsided: bool

    @classmethod
    def of(cls, x: Tensor, bits: int) -> ReadValues:
        """Look at ``x``, which a layer is to read with so many ``bits``."""
        square = x.to(torch.float64, copy=True).square_().mean().item()
        return cls(square, bits <= FEW_BITS and _is_lopsided(x, square, bits))


def fitting_grid(
    inputs: list[fx.Node], values: Mapping[fx.Node, ReadValues], bits: int, *, fitted: bool
) -> ActivationGrid | None:
    """The grid of a layer that reads ``inputs``, one for each of its calls; None where it reads signs.

    Args:
        inputs: the nodes.
        values: what is known of them.
        bits: of an activation.
        fitted: whether 1 bit gets a grid, too, where that is an unsigned one.
    """
    if bits == 1 and not fitted:
        return None
    signed = not all(is_non_negative(x) or (x in values and values[x].lopsided) for x in inputs)
    if bits == 1 and signed:
        return None
    usual = 1.0 if signed else 0.5
    mean = sum(values[x].mean_square if x in values else usual for x in inputs) / len(inputs)
    return ActivationGrid(bits, signed, spacing_of(math.sqrt(mean), bits, signed))


def codes_on(grid: ActivationGrid | None, x: Tensor) -> Tensor:
    """The levels of ``x``, or its signs where there is no grid."""
    codes: Tensor = (
        torch.ops.fqt.sign(x)
        if grid is None
        else torch.ops.fqt.activation_levels(x, grid.spacing, grid.bits, grid.signed)
    )
    return codes


def product_of_codes(product: fx.Node, grid: ActivationGrid | None, codes: Tensor, w: Tensor, *rest: Any) -> Tensor:
    """Return what ``product`` computes once it is binarized: on ``codes`` and signs or levels of ``w``, scaled."""
    scale = torch.ops.fqt.weight_scale(w if w.dim() == 4 else w[:, :, None, None])
    weight = torch.ops.fqt.sign(w)
    if (bits := product.meta["record"].weight_bits) > 1:
        reciprocals, scale = weight_grid(scale, bits)
        weight = torch.ops.fqt.activation_levels(w * reciprocals.view(-1, *(1 for _ in w.shape[1:])), 1.0, bits, True)
    if grid is not None:
        scale = scale * unit(grid.spacing, grid.signed)
    is_convolution = product.target is torch.ops.fqt.conv2d.default
    compute: Callable[..., Tensor] = plain_convolution_by_onednn if is_convolution else torch.ops.fqt.linear.default
    result: Tensor = compute(codes, weight, *rest) * scale
    return result


def _is_lopsided(x: Tensor, mean_square: float, bits: int) -> bool:
    size = math.sqrt(mean_square)
    unsigned = codes_of(x, spacing_of(size, bits, signed=False), bits, signed=False)
    signed = codes_of(x, spacing_of(size, bits, signed=True), bits, signed=True) if bits > 1 else (x > 0).float()
    return _unexplained(x, unsigned) < CLEARLY * _unexplained(x, signed)


def _unexplained(x: Tensor, codes: Tensor) -> float:
    """The share of the variance of ``x`` that no linear function of the codes explains; 1 where codes are all equal."""
    x, codes = (each.double() - each.double().mean() for each in (x, codes))
    variances = x.square().mean().item() * codes.square().mean().item()
    return 1.0 - (x * codes).mean().item() ** 2 / variances if variances > 0 else 1.0
