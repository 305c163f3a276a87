"""ATen ops that have no kernel: they are in a graph only until passes replace them by ops of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fqt_deploy.ops.traits import BatchRule, leads

aten = torch.ops.aten

REPLACED_LAYERS: Mapping[Any, BatchRule] = {
    aten.convolution.default: leads("input"),
    aten._native_batch_norm_legit_no_training.default: leads("input"),
    aten.max_pool2d_with_indices.default: leads("self"),
    aten.addmm.default: leads("mat1"),
    aten.mm.default: leads("self"),
}
"""How layers treat samples; of those that join samples, such as batch normalization in training, there is none."""

RANDOM = (aten.native_dropout.default, aten.bernoulli.p, aten.rand.default, aten.rand_like.default)
"""Ops that draw random numbers."""
