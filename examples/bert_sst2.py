"""BERT that tells whether a sentence about a film praises or complains, as in SST-2: transformers' own model as it is.

Token ids and an attention mask go in; with ``labels`` the model returns its loss. AdamW decays matrices alone, not
biases and the scales of norms. The model has the size of BERT-Tiny and starts from random weights, so that nothing is
downloaded: with ``BertForSequenceClassification.from_pretrained`` in its place it is fine-tuned. The sentences are
made here (see ``sentences``), of a few dozen words; SST-2 itself is no part of a package. It needs transformers:

    pip install transformers
    fqt-compile examples/bert_sst2.py
    python examples/bert_sst2.py train.npz test.npz
    fqt-train bert_sst2.fqt train.npz --eval-data test.npz
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH = 32, 32
WIDTH, LAYERS, HEADS = 128, 2, 2

OPENINGS = ("in the end", "as a whole", "to my mind", "for the most part", "at first", "")
SUBJECTS, LINKS, TURNS, DEGREES, PRAISE, COMPLAINT = (
    line.split()
    for line in """
plot acting script music ending dialogue cast story humour direction camera pace
is was feels seems looks sounds
not never hardly
very quite rather truly
superb moving clever warm fresh gripping charming brilliant honest graceful funny tender
dull clumsy shallow tedious lifeless noisy predictable bland hollow confused silly cold
""".strip().splitlines()
)
JOINTS = ("and", "while", "but", ",")

WORDS = ["[PAD]", "[CLS]", "[SEP]"]
WORDS += sorted({"the", *" ".join(OPENINGS).split(), *SUBJECTS, *LINKS, *TURNS, *DEGREES, *PRAISE, *COMPLAINT, *JOINTS})
"""The vocabulary; a word's id is its place in it."""


def sentence(draw: random.Random) -> tuple[str, int]:
    """A sentence of one to three statements, and whether praise prevails: "not", "never" and "hardly" turn a word."""
    score, statements = 0, []
    for _ in range(draw.choice((1, 2, 3))):
        praises, turned = draw.random() < 0.5, draw.random() < 0.3
        words = ["the", draw.choice(SUBJECTS), draw.choice(LINKS)]
        words += [draw.choice(TURNS)] * turned + [draw.choice(DEGREES)] * (draw.random() < 0.3)
        statements.append(" ".join([*words, draw.choice(PRAISE if praises else COMPLAINT)]))
        score += 1 if praises != turned else -1
    if score == 0:
        return sentence(draw)
    text = statements[0]
    for statement in statements[1:]:
        text = f"{text} {draw.choice(JOINTS)} {statement}"
    return f"{draw.choice(OPENINGS)} {text}".strip(), int(score > 0)


def sentences(samples: int, seed: int = 0) -> dict[str, Tensor]:
    """Made sentences by name, padded: ids and mask [samples, LENGTH] int64, labels [samples] int64."""
    draw, places = random.Random(seed), {word: index for index, word in enumerate(WORDS)}
    ids, mask = torch.zeros(samples, LENGTH, dtype=torch.int64), torch.zeros(samples, LENGTH, dtype=torch.int64)
    labels = torch.zeros(samples, dtype=torch.int64)
    for sample in range(samples):
        text, label = sentence(draw)
        tokens = [places[word] for word in ("[CLS]", *text.split(), "[SEP]")]
        ids[sample, : len(tokens)] = torch.tensor(tokens)
        mask[sample, : len(tokens)] = 1
        labels[sample] = label
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    try:
        from transformers import BertConfig, BertForSequenceClassification
    except ModuleNotFoundError as error:
        raise ImportError("this example needs Hugging Face's transformers: pip install transformers") from error
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model: nn.Module = BertForSequenceClassification(config)
    return model


def example_inputs() -> dict[str, Tensor]:
    """One batch by name; with ``labels`` among it, the model returns the loss."""
    return sentences(BATCH)


def compile_options() -> dict[str, Any]:
    """AdamW with weight decay on matrices alone, as BERT is fine-tuned."""
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "decay": "matrices"}


if __name__ == "__main__":
    import numpy as np

    for file, samples, seed in zip(sys.argv[1:3], (8192, 1024), (1, 2), strict=True):
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in sentences(samples, seed).items()}
        np.savez(file, **arrays)
