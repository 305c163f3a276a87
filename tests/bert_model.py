"""BERT with an attention mask and its loss inside, of any size, and padded texts for it."""

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """Attention over the tokens that are there, and an MLP; each with a residual and LayerNorm behind it."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask):
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.out(attended.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Bert(nn.Module):
    """Embeddings of tokens and positions, layers, a pooler on the first token and a classifier of two classes."""

    def __init__(self, words, tokens, width, layers, heads):
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask, labels=None):
        """Map ids and mask [N, tokens] to logits [N, 2] and, where labels [N] are given, the loss."""
        x = self.norm(self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1])))
        for layer in self.layers:
            x = layer(x, attention_mask.bool()[:, None, None, :])
        logits = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def padded_texts(samples, words, tokens):
    """A batch by name: texts of several lengths, some words twice, padded with word 0."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, min(words, 4 * tokens), (samples, tokens), generator=generator)
    mask = (torch.arange(tokens) < torch.randint(2, tokens, (samples, 1), generator=generator)).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(samples) % 2}
