"""Rows that add up, and rows that do not."""

import dataclasses

import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.profiling.profile_artifact import profile_artifact
from tools.check_rows import filled_share, missing_rows, model_macs


@pytest.fixture(scope="module")
def profile(digits_artifact):
    return profile_artifact(digits_artifact, steps=1)


def test_every_multiply_accumulate_belongs_to_its_layer(profile, digits_source):
    macs = model_macs(digits_source)
    assert set(macs) == {layer.path for layer in profile.layers}
    assert list(missing_rows(profile, macs)) == []
    assert 0 < filled_share(profile) < 1


def test_a_kernel_of_no_layer_is_found(profile, digits_source):
    def lost(kernel):
        return dataclasses.replace(kernel, layer="") if kernel.layer == "features.3" else kernel

    wrong = dataclasses.replace(profile, kernels=tuple(map(lost, profile.kernels)))
    said = list(missing_rows(wrong, model_macs(digits_source)))
    assert [sentence.split(":")[0] for sentence in said] == ["features.3", "features.3", "(step)"]
    assert said[0].startswith("features.3: 0.00 M multiply-accumulates in forward")


def test_a_direction_without_a_product_is_found(profile, digits_source):
    forward = tuple(kernel for kernel in profile.kernels if kernel.phase == "forward")
    said = missing_rows(dataclasses.replace(profile, kernels=forward), model_macs(digits_source))
    assert list(said) == [f"{layer.path}: no product in backward" for layer in profile.layers]


def test_attention_is_counted():
    class Attending(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x[:, :5], x[:, :5, :8]).mean(1)

    source = ModelSource(
        nn.Sequential(Attending(), nn.Linear(8, 3)),
        nn.functional.cross_entropy,
        (torch.randn(4, 7, 16), torch.arange(4) % 3),
    )
    assert model_macs(source) == {"0": 4 * 7 * 5 * (16 + 8), "1": 4 * 8 * 3}
