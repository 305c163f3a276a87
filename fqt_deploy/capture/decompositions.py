"""Which compound ops PyTorch spells in simpler ones before the compiler sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions

from fqt_deploy.capture.own_decompositions import OWN

aten = torch.ops.aten

_DECOMPOSE = (
    aten._log_softmax, aten._log_softmax_backward_data, aten._softmax, aten._softmax_backward_data,
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.threshold_backward,
    aten.nll_loss_forward, aten.nll_loss_backward, aten.t, aten.transpose, aten.rsub, aten._unsafe_view,
    aten.tanh_backward, aten.sigmoid_backward, aten.silu, aten.silu_backward, aten.var_mean, aten.hardtanh,
    aten.hardtanh_backward, aten.hardswish, aten.hardswish_backward, aten.leaky_relu, aten.leaky_relu_backward,
    aten.elu, aten.elu_backward, aten.mse_loss, aten.mse_loss_backward, aten.native_dropout_backward,
    aten._adaptive_avg_pool2d_backward, aten.binary_cross_entropy_with_logits, aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward, aten.slice_backward, aten.select_backward, aten.stack, aten.unbind,
    aten._native_batch_norm_legit, aten.upsample_bilinear2d, aten.upsample_nearest2d, aten.upsample_nearest2d_backward,
)  # fmt: skip
"""Compound ops that PyTorch itself knows how to spell in simpler ones."""

_KEEP = (
    aten.convolution, aten.convolution_backward, aten._native_batch_norm_legit_functional,
    aten.native_batch_norm_backward, aten._native_batch_norm_legit_no_training, aten.max_pool2d_with_indices,
    aten.max_pool2d_with_indices_backward, aten.avg_pool2d, aten.avg_pool2d_backward, aten._adaptive_avg_pool2d,
    aten.mm, aten.addmm, aten.bmm, aten.native_dropout, aten.embedding, aten.embedding_dense_backward, aten.relu,
    aten.gelu, aten.gelu_backward, aten.mean, aten.var, aten.squeeze, aten.unsqueeze, aten.expand, aten.sum,
    aten.bernoulli,
)  # fmt: skip
"""Ops that this compiler has a better lowering for than their decomposition."""


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, _: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized over each sample's groups of channels, with mean and inverse deviation [n, groups]."""
    grouped = x.reshape(n, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    y = (centred * inverse).view(x.shape)
    each = [1, channels, *[1] * (x.dim() - 2)]
    y = y if weight is None else y * weight.view(each)
    return y if bias is None else y + bias.view(each), mean.view(n, groups), inverse.view(n, groups)


def _split(x: Tensor, sizes: list[int], axis: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [aten.slice(x, axis, start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _copy(destination: Tensor, source: Tensor, _: bool = False) -> Tensor:
    return source.to(destination.dtype).expand(destination.shape).clone()


_OWN: dict[Any, Callable[..., Any]] = {
    aten.copy.default: _copy,
    aten.native_group_norm.default: _group_norm,
    aten.split_with_sizes.default: _split,
    **OWN,
}
"""Ops that PyTorch spells in what has no lowering."""


def decompositions() -> dict[Any, Callable[..., Any]]:
    """PyTorch's rule for every op that it spells in simpler ones, and ours."""
    table = {**core_aten_decompositions(), **get_decompositions(_DECOMPOSE)}
    kept = {getattr(packet, overload) for packet in _KEEP for overload in packet.overloads()}  # type: ignore[no-untyped-call]
    return {op: rule for op, rule in table.items() if op not in kept} | _OWN
