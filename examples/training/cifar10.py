"""What both loops of this folder share: CIFAR-10 with augmentation, a ResNet, its parameter groups, the accuracy.

A data file is written from any source by ``numpy.savez(file, x=..., y=...)``: images as uint8 [n, 3, 32, 32], labels as
int64 [n]; for example of ``torchvision.datasets.CIFAR10``: ``x=data.data.transpose(0, 3, 1, 2), y=data.targets``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


class Cifar10(Dataset[tuple[Tensor, int]]):
    """The images of a file, normalized; flipped and shifted at random if ``augment``."""

    def __init__(self, file: Path, *, augment: bool) -> None:
        arrays = np.load(file)
        self.images, self.labels = torch.from_numpy(arrays["x"]), [int(label) for label in arrays["y"]]
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = (self.images[index] / 255 - MEAN) / STD
        if self.augment:
            top, left, flip = torch.randint(0, 9, ()), torch.randint(0, 9, ()), torch.rand(()) < 0.5
            image = nn.functional.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
            image = image.flip(2) if flip else image
        return image, self.labels[index]


class Block(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        same = stride == 1 and inner == outer
        shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """The result, [n, outer, height / stride, width / stride]."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet(width: int = 64, blocks: tuple[int, ...] = (2, 2, 2, 2)) -> nn.Module:
    """A ResNet for images of 32x32; by default ResNet-18."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inner = width
    for stage, count in enumerate(blocks):
        outer = width << stage
        for block in range(count):
            layers.append(Block(inner, outer, 2 if block == 0 and stage > 0 else 1))
            inner = outer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 10))


def decay_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels decay, biases and norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Any], batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The share of labels that ``predict`` puts first."""
    right = [predict(x).argmax(1) == y for x, y in batches]
    return float(torch.cat(right).float().mean())
