"""ResNet-18 for 32x32 RGB images and ten classes.

https://arxiv.org/abs/1512.03385 with the stem usual for CIFAR-10: one 3x3 convolution of stride 1 and no pooling.
Compile it with ``fqt-compile examples/resnet18_cifar.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 64


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, in_channels, H, W] float32`` to ``[N, out_channels, H/stride, W/stride] float32``."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
    """A stem, four stages of two blocks each, global average pooling and one linear layer."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        blocks: list[nn.Module] = []
        channels = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [BasicBlock(channels, width, stride), BasicBlock(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 32, 32] float32`` to logits ``[N, classes] float32``."""
        features: Tensor = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def build_model() -> nn.Module:
    """The model to train, with its initial weights."""
    return ResNet18()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    return images, labels


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}
