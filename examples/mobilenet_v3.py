"""MobileNetV3-Small for 96x96 RGB images and ten classes.

https://arxiv.org/abs/1905.02244. Its 1x1 convolutions run in 1 bit; depthwise ones, which sum over few numbers, stay
in fp32. The data are scikit-learn's digits, enlarged and coloured:

    fqt-compile examples/mobilenet_v3.py
    python examples/mobilenet_v3.py digits.npz
    fqt-train mobilenet_v3.fqt digits.npz
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 32
IMAGE = 96

BLOCKS = (
    # kernel, expanded, out, squeeze and excite, hard swish, stride
    (3, 16, 16, True, False, 2),
    (3, 72, 24, False, False, 2),
    (3, 88, 24, False, False, 1),
    (5, 96, 40, True, True, 2),
    (5, 240, 40, True, True, 1),
    (5, 240, 40, True, True, 1),
    (5, 120, 48, True, True, 1),
    (5, 144, 48, True, True, 1),
    (5, 288, 96, True, True, 2),
    (5, 576, 96, True, True, 1),
    (5, 576, 96, True, True, 1),
)
"""The blocks of the small network, one a row."""


def convolution(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """A convolution that keeps the image's size but for its stride, batch normalization, and an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([act] if act is not None else []))


class SqueezeExcite(nn.Module):
    """Each channel times a factor that the means of all channels give."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(8, (channels // 4 + 4) // 8 * 8)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x: [N, channels, H, W] float32``; same shape and dtype."""
        factor = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        scaled: Tensor = x * nn.functional.hardsigmoid(self.expand(factor))
        return scaled


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, weigh channels, project."""

    def __init__(
        self, kernel: int, in_channels: int, wide: int, out_channels: int, excite: bool, swish: bool, stride: int
    ) -> None:
        super().__init__()
        act = nn.Hardswish if swish else nn.ReLU
        layers: list[nn.Module] = [] if wide == in_channels else [convolution(in_channels, wide, act=act())]
        layers.append(convolution(wide, wide, kernel, stride, groups=wide, act=act()))
        layers += [SqueezeExcite(wide)] if excite else []
        self.layers = nn.Sequential(*layers, convolution(wide, out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, in_channels, H, W] float32`` to ``[N, out_channels, H/stride, W/stride] float32``."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV3Small(nn.Module):
    """A stem, eleven blocks, a last 1x1 convolution, the mean over the image and two linear layers."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks: list[nn.Module] = [convolution(3, 16, 3, 2, act=nn.Hardswish())]
        channels = 16
        for kernel, wide, out, excite, swish, stride in BLOCKS:
            blocks.append(Block(kernel, channels, wide, out, excite, swish, stride))
            channels = out
        self.features = nn.Sequential(*blocks, convolution(channels, 576, act=nn.Hardswish()))
        self.classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1024, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, H, W] float32`` to logits ``[N, classes] float32``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MobileNetV3Small()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, 10, (BATCH,), generator=generator)


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}


def data(samples: int = 1797) -> tuple[Tensor, Tensor]:
    """Digits of scikit-learn in random colours: images [N, 3, 96, 96] float32 and their classes [N] int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy(digits.images[:samples]).float()[:, None] / 8 - 1
    large = nn.functional.interpolate(grey, size=(IMAGE, IMAGE), mode="bilinear")
    colours = torch.rand(len(grey), 3, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    return large * colours, torch.from_numpy(digits.target[:samples]).long()


if __name__ == "__main__":
    import numpy as np

    x, y = data()
    np.savez(sys.argv[1], x=x.numpy(), y=y.numpy())
