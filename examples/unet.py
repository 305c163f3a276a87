"""A U-Net that finds discs and squares: every pixel of a 64x64 RGB image gets one of three classes.

https://arxiv.org/abs/1505.04597 with batch normalization and padded convolutions. The data are drawn by this file:

    fqt-compile examples/unet.py
    python examples/unet.py shapes.npz
    fqt-train unet.fqt shapes.npz
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 16
IMAGE = 64
CLASSES = 3
"""Background, disc, square."""
WIDTHS = (32, 64, 128, 256)


def double_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions that keep the image's size, each with batch normalization and ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Convolutions on ever smaller images, then on ever larger ones, beside those of the same size before."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(double_convolution(a, b) for a, b in zip((3, *WIDTHS), WIDTHS, strict=False))
        pairs = list(zip(WIDTHS[::-1], WIDTHS[-2::-1], strict=False))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(double_convolution(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(WIDTHS[0], CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, H, W] float32`` to logits ``[N, CLASSES, H, W] float32``."""
        kept: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(nn.functional.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for enlarge, block, beside in zip(self.enlarge, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([enlarge(x), beside], 1))
        logits: Tensor = self.head(x)
        return logits


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and the classes of their pixels."""
    return data(BATCH)


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A disc and a square in each image, of random place, size and colour, under noise.

    Returns:
        Images [N, 3, IMAGE, IMAGE] float32 and classes [N, IMAGE, IMAGE] int64.
    """
    generator = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(IMAGE), torch.arange(IMAGE), indexing="ij")
    images = 0.3 * torch.randn(samples, 3, IMAGE, IMAGE, generator=generator)
    classes = torch.zeros(samples, IMAGE, IMAGE, dtype=torch.int64)
    for shape in (1, 2):
        centre = torch.randint(12, IMAGE - 12, (samples, 2, 1, 1), generator=generator)
        size = torch.randint(5, 12, (samples, 1, 1), generator=generator)
        colour = torch.rand(samples, 3, 1, 1, generator=generator) * 2 - 1
        down, right = (row - centre[:, 0]).abs(), (column - centre[:, 1]).abs()
        inside = down**2 + right**2 <= size**2 if shape == 1 else torch.maximum(down, right) <= size
        images = torch.where(inside[:, None], images + colour, images)
        classes = torch.where(inside, shape, classes)
    return images, classes


if __name__ == "__main__":
    import numpy as np

    x, y = data(1600, seed=1)
    np.savez(sys.argv[1], x=x.numpy(), y=y.numpy())
