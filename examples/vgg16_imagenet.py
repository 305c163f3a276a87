"""VGG16 with batch normalization for 224x224 RGB images and a thousand classes.

The thirteen convolutions of configuration D of https://arxiv.org/abs/1409.1556, global average pooling instead of the
two large linear layers, and one linear classifier. Compile it with ``fqt-compile examples/vgg16_imagenet.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BATCH = 8
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions between one max pooling and the next."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five pooled stages, their mean over positions, then one linear layer."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in STAGES:
            for width in stage:
                layers += [
                    nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 224, 224] float32`` to logits ``[N, classes] float32``."""
        features: Tensor = self.features(x)
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def build_model() -> nn.Module:
    """The model to train, with its initial weights."""
    return VGG16()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 224, 224, generator=generator)
    labels = torch.randint(0, 1000, (BATCH,), generator=generator)
    return images, labels


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits ``outputs: [N, 1000] float32`` and class indices ``targets: [N] int64``."""
    return functional.cross_entropy(outputs, targets)


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}
