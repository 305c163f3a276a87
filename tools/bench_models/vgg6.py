"""A small VGG for images of 32x32 pixels, as in the accuracy study: ``fqt-compile tools/bench_models/vgg6.py``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.accuracy.networks import NETWORKS

BATCH = 128


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS["vgg6"].build(10)


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, 3, 32, 32, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)
