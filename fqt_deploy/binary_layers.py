"""Layers that compute on signs, as PyTorch modules: what ``CompiledStep.to_torch`` puts in place of the 1-bit layers.

They have the parameters of the layers they stand for, the latent weights, and compute what the compiled step does in
forward: ``scale * product(sign(x), sign(weight)) + bias``, with a scale for each output channel, the mean of its
weights' magnitudes. Activations and weights of several bits are levels of a grid, whole numbers, in the place of
signs. Gradients pass straight through where a magnitude is at most 1, or the grid does not clamp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.model_copy import copy_of_model
from fqt_deploy.ops.lib.levels import weight_grid


@dataclass(frozen=True)
class Grid:
    """The values that a layer's activations are quantized to.

    Attributes:
        bits: of a code, the number of a value: there are ``2 ** bits``.
        signed: whether the values lie around 0, odd multiples of half the spacing; else they begin with 0.
        spacing: distance of neighbouring values, a float32.
    """

    bits: int
    signed: bool
    spacing: float

    @property
    def unit(self) -> float:
        """The value of level 1."""
        return self.spacing / 2 if self.signed else self.spacing

    def levels(self, x: Tensor) -> Tensor:
        """The nearest value to each element of ``x`` in units, whole numbers; differentiable where none is clamped."""
        largest, half = 2**self.bits - 1, 2 ** (self.bits - 1)
        # in float32, as every compiled step has it
        scaled = x * float(torch.tensor(1.0) / torch.tensor(self.spacing))
        if self.signed:
            code, low, high = torch.floor(scaled) + half, -half, half
        else:
            code, low, high = torch.floor(scaled + 0.5), -0.5, largest + 0.5
        code = torch.where(code > 0, code.clamp(max=largest), 0.0)  # also of NaN
        levels = 2 * code - largest if self.signed else code
        if not (torch.is_grad_enabled() and x.requires_grad):
            return levels
        passed = torch.where((scaled >= low) & (scaled < high), x / self.unit, 0.0)
        return levels.detach() + (passed - passed.detach())  # which adds exactly 0


class BinaryConv2d(nn.Conv2d):
    """A convolution of signs, or of levels with signs; the sign of 0 is -1, padding is 0.

    Attributes:
        grid: of the activations; None for their signs.
        weight_bits: of the weight; 1 for its signs.
    """

    grid: Grid | None = None
    weight_bits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, [N, out_channels, H, W] float32."""
        weight, scale = _quantized_weight(self.weight, self.weight_bits, self.grid)
        product: Tensor = self._conv_forward(_quantized(x, self.grid), weight, None)
        result: Tensor = product * scale.view(-1, 1, 1)
        return result if self.bias is None else result + self.bias.view(-1, 1, 1)


class BinaryLinear(nn.Linear):
    """A matrix product of signs, or of levels with signs; the sign of 0 is -1.

    Attributes:
        grid: of the activations; None for their signs.
        weight_bits: of the weight; 1 for its signs.
    """

    grid: Grid | None = None
    weight_bits: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, [..., out_features] float32."""
        weight, scale = _quantized_weight(self.weight, self.weight_bits, self.grid)
        result = nn.functional.linear(_quantized(x, self.grid), weight) * scale
        return result if self.bias is None else result + self.bias


class BinaryConv1D(nn.Module):
    """The same for ``Conv1D`` of transformers, a linear layer whose weight lies [in, out].

    Attributes:
        grid: of the activations; None for their signs.
        weight_bits: of the weight; 1 for its signs.
        weight: [in_features, out_features] float32.
        bias: [out_features] float32.
    """

    grid: Grid | None = None
    weight_bits: int = 1
    weight: nn.Parameter
    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, [..., out_features] float32."""
        weight, scale = _quantized_weight(self.weight.T, self.weight_bits, self.grid)
        return nn.functional.linear(_quantized(x, self.grid), weight) * scale + self.bias


_BINARY: dict[str, type[nn.Module]] = {
    f"{nn.Conv2d.__module__}.Conv2d": BinaryConv2d,
    f"{nn.Linear.__module__}.Linear": BinaryLinear,
    "transformers.pytorch_utils.Conv1D": BinaryConv1D,
}
"""By the name of the class that a layer has: transformers need not be there."""


def signs_of(x: Tensor) -> Tensor:
    """+1 where ``x`` is above 0, else -1, of its shape; differentiable as ``clamp(x, -1, 1)`` is."""
    signs = torch.where(x > 0, 1.0, -1.0)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return signs
    passed = x.clamp(-1.0, 1.0)
    return signs + (passed - passed.detach())  # which adds exactly 0


def _quantized(x: Tensor, grid: Grid | None) -> Tensor:
    return signs_of(x) if grid is None else grid.levels(x)


def _quantized_weight(weight: Tensor, bits: int, grid: Grid | None) -> tuple[Tensor, Tensor]:
    """The signs or levels of a weight [O, ...], and what a product with them is multiplied by: [O]."""
    scale = weight.abs().flatten(1).mean(1)
    quantized = signs_of(weight) if bits == 1 else weight
    if bits > 1:  # the spacing follows the weight, and is a constant in backward
        reciprocals, scale = weight_grid(scale.detach(), bits)
        scaled = weight * reciprocals.view(-1, *(1 for _ in weight.shape[1:]))
        quantized = Grid(bits, signed=True, spacing=1.0).levels(scaled)
    return quantized, scale if grid is None else scale * grid.unit


def binarized(
    model: nn.Module, layers: Mapping[str, Grid | None], weight_bits: Mapping[str, int] | None = None
) -> nn.Module:
    """A copy of ``model`` whose layers compute on signs; its state dict has the names of the model's.

    Args:
        model: the model; it is not changed.
        layers: the grid of its activations by the path of each layer; None for signs.
        weight_bits: bits of weights by the path of their layer; 1 where there is none.

    Raises:
        FqtError: FQT513 for a layer that is no plain ``Conv2d``, ``Linear`` or ``Conv1D`` of transformers.
    """
    model = copy_of_model(model)
    modules = dict(model.named_modules())
    for path, grid in layers.items():
        layer = modules.get(path)
        kind = _BINARY.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
        if layer is None or kind is None:
            found = "there is no module of this name" if layer is None else f"it is a {type(layer).__name__}"
            raise FqtError(
                f"the 1-bit layer {path!r} has no form as a PyTorch module: {found}",
                code="FQT513",
                hint=f"predict with the step; or compile with --exclude {path!r}, which leaves it in fp32",
            )
        layer.__class__ = kind
        layer.grid = grid
        layer.weight_bits = (weight_bits or {}).get(path, 1)
    return model
