"""Which compound ATen ops PyTorch spells in simpler ones before the compiler sees them."""

from __future__ import annotations

import torch

aten = torch.ops.aten

DECOMPOSED = (
    aten._log_softmax, aten._softmax, aten.native_layer_norm, aten.var_mean, aten.hardtanh, aten.leaky_relu, aten.elu,
    aten._native_batch_norm_legit, aten.upsample_bilinear2d, aten.upsample_nearest2d,
)  # fmt: skip
"""Compound ops that are spelled in simpler ones beside those of PyTorch's own core set."""

KEPT = (
    aten.embedding_dense_backward, aten.gelu_backward, aten.native_batch_norm_backward, aten.squeeze, aten.sum,
    aten.var, aten.bernoulli,
)  # fmt: skip
"""Ops of that set that this compiler has a better lowering for than their decomposition."""
