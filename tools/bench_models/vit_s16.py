"""ViT-S/16 for 224x224 RGB images and a thousand classes: https://arxiv.org/abs/2010.11929, with mean pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 8
WIDTH, DEPTH, HEADS, PATCH, IMAGE, CLASSES = 384, 12, 6, 16, 224, 1000


class Block(nn.Module):
    """Attention and an MLP, each normalized before and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, patches, width] float32`` to the same shape and dtype."""
        normed = self.norm1(x)
        q, k, v = (f(normed).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class ViT(nn.Module):
    """A patch embedding with positions, a stack of blocks, the mean over patches and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, kernel_size=PATCH, stride=PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (IMAGE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 224, 224] float32`` to logits ``[N, 1000] float32``."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


def build_model() -> nn.Module:
    """The model to train, with random initial weights."""
    torch.manual_seed(0)
    return ViT()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, CLASSES, (BATCH,), generator=generator)
