"""Functions of PyTorch that look at values, before they compute or to see how much, in a form that only computes.

And such as have a gradient of their own, in simpler functions that have one each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from fqt_deploy.capture.ctc_loss import ctc_loss
from fqt_deploy.capture.einsum import einsum
from fqt_deploy.capture.embedding_bag import embedding_bag, torch_embedding_bag
from fqt_deploy.capture.grid_sample import grid_sample
from fqt_deploy.capture.interpolate import interpolate
from fqt_deploy.capture.recurrent_dropout import RECURRENT, layer_by_layer
from fqt_deploy.capture.tracing import untraceable


def _gaussian_nll_loss(
    input: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """``F.gaussian_nll_loss`` without the error for a negative variance, which is clamped."""
    if isinstance(var, (int, float)):
        var = var * torch.ones_like(input)
    if var.dim() == input.dim() - 1 and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    clamped = torch.clamp(var, min=eps).detach() + (var - var.detach())  # the gradient passes where it is clamped, too
    loss = 0.5 * (torch.log(clamped) + (input - target) ** 2 / clamped)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    reduced: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "sum": torch.sum, "none": lambda x: x}
    return reduced[reduction](loss)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """``F.one_hot`` of a size that shapes alone say."""
    if num_classes == -1:
        raise untraceable(
            "F.one_hot without num_classes: the size of its result depends on values",
            "give the number of classes: F.one_hot(x, num_classes)",
        )
    return F.one_hot(tensor, num_classes)


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Tensor:
    """``torch.ctc_loss``, which has numbers for the reductions."""
    named = ("none", "mean", "sum")[reduction]
    return ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, named, zero_infinity)


def _gradient(*args: Any, **kwargs: Any) -> Any:
    """``torch.autograd.grad`` in a model, whose loss then depends on the gradient of a gradient."""
    if not torch.compiler.is_exporting():
        return torch.autograd.grad(*args, **kwargs)
    raise untraceable(
        "torch.autograd.grad within the model or its loss: gradients of gradients are not compiled",
        "write the derivative down, or take a difference: (f(x + h) - f(x)) / h",
    )


_REPLACED: dict[Any, Callable[..., Any]] = {
    F.ctc_loss: ctc_loss, F.embedding_bag: embedding_bag, F.grid_sample: grid_sample,
    F.gaussian_nll_loss: _gaussian_nll_loss, F.interpolate: interpolate, F.one_hot: _one_hot,
    torch.ctc_loss: _ctc_loss,
    torch.einsum: einsum, torch.embedding_bag: torch_embedding_bag, torch.autograd.grad: _gradient,
    **{function: layer_by_layer(function) for function in RECURRENT},
}  # fmt: skip


def _told_to_be_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What ``nn.Transformer`` was told of a mask, which counts where it is not known to be causal."""
    return is_causal is True


class _Never:
    """An attribute that is False, whatever an object has been told."""

    def __get__(self, owner: Any, kind: type) -> bool:
        """Returns that it is not so."""
        return False

    def __set__(self, owner: Any, value: bool) -> None:
        """Keep ``value`` for when this is over."""
        vars(owner)["_validate_args"] = value


class ReplacedFunctions(TorchFunctionMode):
    """Within this context these functions are traced in the form that only computes.

    Distributions do not look at their parameters and samples, either: what is not valid gives no error, but NaN. Nor
    does ``nn.Transformer`` look whether a mask is causal.
    """

    def __enter__(self) -> Self:
        """Enter, without the checks of distributions, also of those that exist already, or are told to check."""
        self._checked = Distribution._validate_args
        Distribution._validate_args = _Never()  # type: ignore[assignment]
        self._unseen = contextlib.ExitStack()
        self._unseen.enter_context(mock.patch.object(transformer, "_detect_is_causal_mask", _told_to_be_causal))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        """Leave, with those checks as before."""
        self._unseen.close()
        Distribution.set_default_validate_args(self._checked)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call what stands for ``func``."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))
