"""A vision transformer, ViT-S/16, for 96x96 RGB images and ten classes.

https://arxiv.org/abs/2010.11929. Parameters have the names of timm's ``vit_small_patch16_224``, so that weights of that
model load with ``--weights``, once its position embedding is resampled. The patch embedding and the classifier stay in
fp32. The data are scikit-learn's digits, enlarged and coloured, as those of ``mobilenet_v3.py``:

    fqt-compile examples/vit_s16.py
    python examples/mobilenet_v3.py digits.npz
    fqt-train vit_s16.fqt digits.npz
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 32
IMAGE, PATCH = 96, 16
DIM, DEPTH, HEADS = 384, 12, 6


class PatchEmbed(nn.Module):
    """Square patches as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, 3, H, W] float32`` to ``[N, patches, DIM] float32``."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, tokens, DIM] float32`` to the same shape and dtype."""
        n, tokens, _ = x.shape
        query, key, value = self.qkv(x).view(n, tokens, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(n, tokens, DIM))
        return projected


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, tokens, DIM] float32`` to the same shape and dtype."""
        y: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return y


class Block(nn.Module):
    """Attention and an MLP, each normalized before and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(DIM, eps=1e-6), Attention()
        self.norm2, self.mlp = nn.LayerNorm(DIM, eps=1e-6), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, tokens, DIM] float32`` to the same shape and dtype."""
        x = x + self.attn(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """Patches and a class token with positions, a stack of blocks, and one linear layer on the class token."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (IMAGE // PATCH) ** 2, DIM) * 0.02)
        self.patch_embed = PatchEmbed()
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        self.head = nn.Linear(DIM, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, IMAGE, IMAGE] float32`` to logits ``[N, classes] float32``."""
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)], 1)
        logits: Tensor = self.head(self.norm(self.blocks(tokens + self.pos_embed))[:, 0])
        return logits


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VisionTransformer()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator)
    return images, torch.randint(0, 10, (BATCH,), generator=generator)


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.05}
