import pytest
import torch

from tools.accuracy.networks import NETWORKS, model_source
from tools.accuracy.quantizer_variance import layer_gradients, quantizer_variance


@pytest.fixture(scope="module")
def found():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(16, 1, 1, generator=generator) ** 4  # few large samples, as late in training
    return quantizer_variance("layer", torch.randn(16, 9, 8, generator=generator) * sizes, bits=4, draws=60)


def test_measured_variances_keep_the_bounds_of_the_paper(found):
    assert 0.3 * found.psq1_bound < found.psq1 < found.psq1_bound
    assert 0.3 * found.rounding_bound < found.rounding < found.rounding_bound


def test_sampling_is_unbiased_and_the_largest_are_not(found):
    assert 0.1 < found.sampled_bias < 3  # of few effective groups
    assert found.topk_bias == pytest.approx(found.topk - found.rounding, rel=0.5)
    assert found.topk < found.sampled < found.psq1


def test_gradients_are_those_of_the_binarized_layers():
    source = model_source(NETWORKS["digits"], 5, 8)
    gradients = layer_gradients(source)
    assert {name: tuple(g.shape) for name, g in gradients.items()} == {
        "features.3": (8, 64, 64), "features.7": (8, 16, 64), "features.10": (8, 16, 64),
    }  # fmt: skip
    assert all(g.abs().sum() > 0 for g in gradients.values())
