"""ConvNeXt-Tiny for 64x64 RGB images and ten classes: https://arxiv.org/abs/2201.03545."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 16
IMAGE, CLASSES = 64, 10
DEPTHS, WIDTHS = (3, 3, 9, 3), (96, 192, 384, 768)
EPSILON = 1e-6


class ImageNorm(nn.LayerNorm):
    """Layer normalization of the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, C, H, W] float32`` to the same shape and dtype."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise convolution, an MLP over channels, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, width, H, W] float32`` to the same shape and dtype."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        result: Tensor = x + y.permute(0, 3, 1, 2)
        return result


class ConvNeXt(nn.Module):
    """A patch embedding, four stages of blocks with a smaller image and more channels each, a mean and a head."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 3
        for depth, width in zip(DEPTHS, WIDTHS, strict=True):
            if channels == 3:
                stages += [nn.Conv2d(channels, width, 4, 4), ImageNorm(width, eps=EPSILON)]
            else:
                stages += [ImageNorm(channels, eps=EPSILON), nn.Conv2d(channels, width, 2, 2)]
            stages += [Block(width) for _ in range(depth)]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(channels, eps=EPSILON), nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, H, W] float32`` to logits ``[N, classes] float32``."""
        logits: Tensor = self.head(self.norm(self.stages(x).mean((2, 3))))
        return logits


def build_model() -> nn.Module:
    """The model to train, with random initial weights."""
    torch.manual_seed(0)
    return ConvNeXt()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)
