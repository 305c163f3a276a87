"""A small convolutional network for the 8x8 grey images of scikit-learn's digits.

Small enough to compile and train in seconds. Compile it with ``fqt-compile examples/digits_cnn.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 64


def convolution(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 3x3 convolution that keeps the image size, batch normalization and ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class DigitsCNN(nn.Module):
    """Four convolutions, one max pooling between the second and the third, and one linear layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(1, 32), *convolution(32, 64), nn.MaxPool2d(2), *convolution(64, 64), *convolution(64, 64)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 1, 8, 8] float32`` to logits ``[N, classes] float32``."""
        features: Tensor = self.pool(self.features(x))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DigitsCNN()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    return images, labels


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}
