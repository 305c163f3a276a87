"""MLP-Mixer for 32x32 RGB images and ten classes.

https://arxiv.org/abs/2105.01601 with 4x4 patches, width 256 and eight layers.
Compile it with ``fqt-compile examples/mlp_mixer.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BATCH = 128


class MixerLayer(nn.Module):
    """An MLP across the patches, then one across the channels, each normalized and with a residual."""

    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.token_mlp = nn.Sequential(nn.Linear(patches, 2 * patches), nn.GELU(), nn.Linear(2 * patches, patches))
        self.channel_norm = nn.LayerNorm(dim)
        self.channel_mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, patches, dim] float32`` to the same shape and dtype."""
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.channel_mlp(self.channel_norm(x))
        return y


class MLPMixer(nn.Module):
    """A patch embedding, a stack of mixer layers, the mean over patches and one linear layer."""

    def __init__(self, image: int = 32, patch: int = 4, dim: int = 256, depth: int = 8, classes: int = 10) -> None:
        super().__init__()
        patches = (image // patch) ** 2
        self.embed = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.layers = nn.Sequential(*(MixerLayer(patches, dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 32, 32] float32`` to logits ``[N, classes] float32``."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        logits: Tensor = self.classifier(self.norm(self.layers(tokens)).mean(dim=1))
        return logits


def build_model() -> nn.Module:
    """The model to train, with its initial weights."""
    return MLPMixer()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of images and class indices: their shapes and dtypes become those of the compiled step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)
    return images, labels


def compile_options() -> dict[str, Any]:
    """Defaults of ``fqt-compile`` for this model; options on its command line win."""
    return {"recipe": "scq+agp", "optimizer": "adam", "lr": 1e-3}
