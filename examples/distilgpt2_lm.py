"""GPT-2 that learns to write the next character: transformers' own model of six layers, as DistilGPT2 has, as it is.

The ids are both what goes in and the ``labels``: the model shifts them and returns its loss. It is narrow and starts
from random weights, so that nothing is downloaded. The text is the reference manual that comes with every Python, the
pages of ``help()``: 465,000 characters, of which the last tenth is held out. It needs transformers:

    pip install transformers
    fqt-compile examples/distilgpt2_lm.py
    python examples/distilgpt2_lm.py train.npz test.npz
    fqt-train distilgpt2_lm.fqt train.npz --eval-data test.npz
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH = 16, 128
WIDTH, LAYERS, HEADS, CHARACTERS = 128, 6, 4, 128
HELD_OUT = 0.1


def text() -> str:
    """The pages of ``help()`` in the order of their names."""
    from pydoc_data.topics import topics

    return "".join(topics[name] for name in sorted(topics))


def sequences(held_out: bool = False) -> dict[str, Tensor]:
    """The text in pieces that follow each other, by name: ids [pieces, LENGTH] int64, the same as labels.

    A character that is not ASCII becomes id 0.
    """
    ids = torch.tensor([code if (code := ord(character)) < CHARACTERS else 0 for character in text()])
    pieces = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    first = int(len(pieces) * (1 - HELD_OUT))
    chosen = (pieces[first:] if held_out else pieces[:first]).clone()
    return {"input_ids": chosen, "labels": chosen.clone()}


def build_model() -> nn.Module:
    """The model to train, with the same initial weights every time."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ModuleNotFoundError as error:
        raise ImportError("this example needs Hugging Face's transformers: pip install transformers") from error
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=CHARACTERS, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def example_inputs() -> dict[str, Tensor]:
    """One batch by name; with ``labels`` among it, the model returns the loss."""
    return {name: tensor[:BATCH] for name, tensor in sequences().items()}


def compile_options() -> dict[str, Any]:
    """AdamW with weight decay on matrices alone."""
    return {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "decay": "matrices", "clip_norm": 1.0}


if __name__ == "__main__":
    import numpy as np

    for file, held_out in zip(sys.argv[1:3], (False, True), strict=True):
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in sequences(held_out).items()}
        np.savez(file, **arrays)
