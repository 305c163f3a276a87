"""``fqt::latent_level_grad``: gradient of a latent weight from that of its levels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, shape
from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.op import Cost, FqtOp, Kind, Operand, define, tensor_bytes
from fqt_deploy.ops.traits import ANY_SIGN, NEVER_ZERO, Layout, Nan, no_samples

aten = torch.ops.aten
fqt = torch.ops.fqt


@define(kind=Kind.COMPOSITE, batch=no_samples, zero=NEVER_ZERO, sign=ANY_SIGN, nan=Nan.UNKNOWN, layout=Layout.OPAQUE)
class LatentLevelGrad(FqtOp):
    """Backward of ``spacing / 2 * level(w / spacing)``: straight through where the quantizer does not clamp, else 0.

    The spacing follows the mean magnitude of a channel, and is a constant in backward.

    Attributes:
        dweff: [O, I, KH, KW] float32, gradient of the quantized weight.
        w: [O, I, KH, KW] float32, latent weight.
        reciprocals: [O] float32, one over the spacing.
        bits: width of a code.
        scale_free: the loss does not depend on the size of a channel, so the true ``dweff`` is orthogonal to the
            levels in every output channel; what this one has along them is noise, and is taken out.

    Returns:
        [O, I, KH, KW] float32.
    """

    dweff: Operand
    w: Operand
    reciprocals: Operand
    bits: int
    scale_free: bool

    def reference(self) -> Tensor:
        """The result in plain PyTorch."""
        scaled = self.w * self.reciprocals.view(-1, 1, 1, 1)
        gradient, axes = self.dweff, [1, 2, 3]
        if self.scale_free:
            codes = levels.codes_of(scaled.clone(), 1.0, self.bits, True)
            level = levels.levels_of(codes, self.bits, True)
            share = (gradient * level).sum(axes, keepdim=True) / level.square().sum(axes, keepdim=True)
            gradient = gradient - share * level
        low, high = levels.passing_range(self.bits, True)
        return torch.where((scaled >= low) & (scaled < high), gradient, 0.0).contiguous()

    def fake(self) -> Tensor:
        """Shape rule: a tensor like ``w``."""
        if self.dweff.shape != self.w.shape or self.w.dim() != 4 or self.reciprocals.shape != self.w.shape[:1]:
            raise ValueError(
                f"gradient {tuple(self.dweff.shape)}, weight {tuple(self.w.shape)} and reciprocals "
                f"{tuple(self.reciprocals.shape)} do not match"
            )
        return self.w.new_empty(tuple(self.w.shape))

    def cost(self) -> Cost:
        """The cost: some ten operations an element for levels, sums and the result."""
        return Cost(flops=12 * self.w.numel(), bytes_moved=3 * tensor_bytes(self.w))

    @staticmethod
    def sample_inputs() -> Iterator[tuple[Any, ...]]:
        """Convolutions and a linear layer, each with and without a size that matters."""
        g = torch.Generator().manual_seed(0)
        for extents, bits in (((16, 32, 3, 3), 2), ((7, 5, 3, 1), 4), ((10, 64, 1, 1), 2)):
            for scale_free in (False, True):
                w = torch.randn(extents, generator=g)
                spacing = levels.WEIGHT_SPACINGS[bits] * w.abs().mean([1, 2, 3])
                yield torch.randn(extents, generator=g), w, spacing.reciprocal(), bits, scale_free

    def decompose(self, emit: Emitter) -> fx.Node:
        """The op in other ops: two sums for each output channel; the rest can be part of the optimizer's kernel."""
        channels, *weight = shape(self.w)
        g, latent = (emit(aten.view.default, tensor, [channels, math.prod(weight)]) for tensor in (self.dweff, self.w))
        scaled = emit(aten.mul.Tensor, latent, emit(aten.view.default, self.reciprocals, [channels, 1]))
        if self.scale_free:
            level = emit(fqt.activation_levels.default, scaled, 1.0, self.bits, True)
            along = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, g, level), [1])
            square = emit(aten.sum.dim_IntList, emit(aten.mul.Tensor, level, level), [1])
            share = emit(aten.view.default, emit(aten.div.Tensor, along, square), [channels, 1])
            g = emit(aten.sub.Tensor, g, emit(aten.mul.Tensor, level, share))
        passed = emit(fqt.level_straight_through.default, g, scaled, 1.0, self.bits, True)
        return emit(aten.view.default, passed, shape(self.w))
