"""Layers that compute on signs, as PyTorch modules: what ``CompiledStep.to_torch`` puts in place of the 1-bit layers.

They have the parameters of the layers they stand for, the latent weights, and compute what the compiled step does in
forward: ``scale * product(sign(x), sign(weight)) + bias``, with a scale for each output channel, the mean of its
weights' magnitudes. Gradients pass straight through where a magnitude is at most 1.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fqt_deploy.core.diagnostics import FqtError


class BinaryConv2d(nn.Conv2d):
    """A convolution of signs; the sign of 0 is -1, padding is 0."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, [N, out_channels, H, W] float32."""
        product: Tensor = self._conv_forward(signs_of(x), signs_of(self.weight), None)
        result: Tensor = product * _scale(self.weight).view(-1, 1, 1)
        return result if self.bias is None else result + self.bias.view(-1, 1, 1)


class BinaryLinear(nn.Linear):
    """A matrix product of signs; the sign of 0 is -1."""

    def forward(self, x: Tensor) -> Tensor:
        """The layer's result, [..., out_features] float32."""
        result = nn.functional.linear(signs_of(x), signs_of(self.weight)) * _scale(self.weight)
        return result if self.bias is None else result + self.bias


_BINARY: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: BinaryConv2d, nn.Linear: BinaryLinear}


def signs_of(x: Tensor) -> Tensor:
    """+1 where ``x`` is above 0, else -1, of its shape; differentiable as ``clamp(x, -1, 1)`` is."""
    signs = torch.where(x > 0, 1.0, -1.0)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return signs
    passed = x.clamp(-1.0, 1.0)
    return signs + (passed - passed.detach())  # which adds exactly 0


def _scale(weight: Tensor) -> Tensor:
    return weight.abs().flatten(1).mean(1)


def binarized(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A copy of ``model`` whose layers at ``paths`` compute on signs; its state dict has the names of the model's.

    Raises:
        FqtError: FQT513 for a layer that is no plain ``Conv2d`` or ``Linear``.
    """
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for path in paths:
        layer = modules.get(path)
        kind = _BINARY.get(type(layer))  # type: ignore[arg-type]
        if layer is None or kind is None:
            found = "there is no module of this name" if layer is None else f"it is a {type(layer).__name__}"
            raise FqtError(
                f"the 1-bit layer {path!r} has no form as a PyTorch module: {found}",
                code="FQT513",
                hint=f"predict with the step; or compile with --exclude {path!r}, which leaves it in fp32",
            )
        layer.__class__ = kind
    return model
