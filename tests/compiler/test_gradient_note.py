"""``--check`` says what becomes of gradients, and what to try where the step then learns too slowly."""

import pytest
import torch
from torch import nn

import fqt_deploy


def network():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def note(model, x, **settings):
    report = fqt_deploy.check(model, example_inputs=(x, torch.arange(len(x)) % 4), **settings)
    assert report.ok
    return report.gradient_note


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "keep 3 bits, of a third of the samples: "),
        ({"grad_bits": 8}, "keep 8 bits, of an eighth of the samples: "),
        ({"agp": "sampled"}, "keep 4 bits, of a quarter of the samples and of the channels: "),
        ({"agp": "topk", "grad_bits": 2}, "keep 2 bits, of half of the samples and of the channels: "),
    ],
)
def test_pruning_says_what_is_kept_and_what_to_try(settings, said):
    text = note(network(), torch.randn(16, 3, 8, 8), **settings)
    assert said in text
    assert text.endswith("If it learns too slowly, try --preset close.")


def test_tokens_are_kept_of_a_transformer():
    model = nn.Sequential(
        nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64), nn.Flatten(),
        nn.Linear(64 * 16, 4),
    )  # fmt: skip
    assert "keep 4 bits, of a quarter of the tokens: " in note(model, torch.randn(8, 16, 32), agp="tokens")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"preset": "close"}, "Gradients of 1-bit layers keep 8 bits, all of them."),
        (
            {"preset": "close", "agp": "once"},
            "Gradients of 1-bit layers keep 8 bits, all of them. agp 'once' counts for nothing with recipe 'scq'.",
        ),
        ({"recipe": "psq-1"}, "Gradients of 1-bit layers keep 1 bit, all of them."),
        ({"grad_bits": 1}, "Gradients of 1-bit layers keep 1 bit, all of them."),
        ({"recipe": "none"}, ""),
        ({"exclude": "*"}, ""),
    ],
)
def test_without_pruning_there_is_nothing_to_try(settings, said):
    assert note(network(), torch.randn(16, 3, 8, 8), **settings) == said
