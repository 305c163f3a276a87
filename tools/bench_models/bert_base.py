"""BERT-base that classifies sequences of 128 tokens: https://arxiv.org/abs/1810.04805, without dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 16
TOKENS, WIDTH, DEPTH, HEADS, VOCABULARY, CLASSES = 128, 768, 12, 12, 30522, 2


class Layer(nn.Module):
    """Attention and an MLP, each with a residual and normalized behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, tokens, width] float32`` to the same shape and dtype."""
        q, k, v = (f(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = self.norm1(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        y: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return y


class Bert(nn.Module):
    """Embeddings of tokens and positions, a stack of layers, a pooler on the first token and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(DEPTH)))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``x: [N, 128] int64`` to logits ``[N, 2] float32``."""
        states = self.layers(self.norm(self.tokens(x) + self.positions))
        logits: Tensor = self.classifier(torch.tanh(self.pooler(states[:, 0])))
        return logits


def build_model() -> nn.Module:
    """The model to train, with random initial weights."""
    torch.manual_seed(0)
    return Bert()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of sequences and their classes."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (BATCH, TOKENS), generator=generator)
    return tokens, torch.randint(0, CLASSES, (BATCH,), generator=generator)
