"""A small text classifier with an attention mask, and batches of padded texts for it."""

import math

import torch
import torch.nn.functional as F
from torch import nn

WORDS, LENGTH, WIDTH, CLASSES = 40, 12, 16, 3


class TextClassifier(nn.Module):
    """One layer of attention over token embeddings; like models for text it takes labels and returns the loss."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.unused = nn.Linear(2, 2)
        self.head.bias.requires_grad_(False)

    def forward(self, input_ids, attention_mask, labels=None):
        """Map ids and mask [N, length] to a dict of logits [N, classes], pooled [N, width] and, with labels, loss."""
        x = self.words(input_ids) + self.places.weight[: input_ids.shape[1]]
        scores = self.query(x) @ self.key(x).transpose(1, 2) / math.sqrt(WIDTH)
        scores = scores + (1.0 - attention_mask.to(x.dtype))[:, None, :] * -1e9
        x = self.norm(x + scores.softmax(-1) @ self.value(x))
        weight = attention_mask.to(x.dtype)[:, :, None]
        pooled = (x * weight).sum(1) / weight.sum(1)
        logits = self.head(pooled)
        outputs = {"logits": logits, "pooled": pooled}
        return outputs if labels is None else {"loss": F.cross_entropy(logits, labels), **outputs}


def texts(samples, length=LENGTH, mask_dtype=torch.int64):
    """A batch by name: texts of several lengths, padded with zeros."""
    generator = torch.Generator().manual_seed(samples)
    ids = torch.randint(1, WORDS, (samples, length), generator=generator)
    lengths = torch.randint(3, length - 1, (samples, 1), generator=generator)
    mask = (torch.arange(length) < lengths).to(mask_dtype)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return {"input_ids": ids * mask.long(), "attention_mask": mask, "labels": labels}
