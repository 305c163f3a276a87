"""GPT-2 small that learns the next of 128 tokens, with tied embeddings and without dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 8
TOKENS, WIDTH, DEPTH, HEADS, VOCABULARY = 128, 768, 12, 12, 50257


class Block(nn.Module):
    """Causal attention and an MLP, each normalized before and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x: [N, tokens, width] float32`` to the same shape and dtype."""
        parts = self.attention(self.norm1(x)).split(WIDTH, dim=2)
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return y


class GPT2(nn.Module):
    """Embeddings of tokens and positions, a stack of blocks, and logits by the embedding of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``x: [N, 128] int64`` to logits ``[N, 128, 50257] float32``."""
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(x) + self.positions)))
        return logits


def build_model() -> nn.Module:
    """The model to train, with random initial weights."""
    torch.manual_seed(0)
    return GPT2()


def example_inputs() -> tuple[Tensor, Tensor]:
    """One batch of sequences, and of the tokens that follow each of theirs."""
    text = torch.randint(0, VOCABULARY, (BATCH, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of the next token, over all places."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())
