"""Laws of selection and stochastic rounding: exactly K groups, and estimators whose mean is the true value."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops import quantization_grid, quantize_samples, select_sampled, stream_key

DRAWS = 2000


def key(step: int, role: int = 2) -> torch.Tensor:
    return stream_key.reference(torch.tensor(7), torch.tensor(step), 3, role)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_sampling_keeps_exactly_k(scores, keep, step):
    keep = min(keep, len(scores))
    index, slot, weight = select_sampled.reference(torch.tensor(scores), None, key(step), keep)
    assert index.shape == weight.shape == (keep,)
    assert (index[1:] > index[:-1]).all()
    assert slot[index.long()].tolist() == list(range(keep))
    assert int((slot >= 0).sum()) == keep
    assert (weight >= 1).all()


def test_sampled_sums_are_unbiased():
    """The mean of D estimates lies within 5 standard errors of the true sum, each element's included."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(24, generator=generator) * torch.rand(24, generator=generator) ** 3
    estimates = torch.zeros(DRAWS, 24)
    for draw in range(DRAWS):
        index, _, weight = select_sampled.reference(values.abs(), None, key(draw), 6)
        estimates[draw, index.long()] = values[index.long()] * weight
    # variance of value / p, drawn with probability p, is value^2 (1 / p - 1), and p is at least K |value| / sum
    probability = (6 * values.abs() / values.abs().sum()).clamp(max=1)
    error = values.abs() / (probability * DRAWS).sqrt()
    assert ((estimates.mean(0) - values).abs() <= 5 * error).all()


def test_stochastic_rounding_is_unbiased():
    """The error of the mean of D codes is at most 5 * step / sqrt(12 D) plus the 2^-20 grid of the noise."""
    g = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2))
    rows = g.flatten(1)
    for bits, grid in ((1, "minmax"), (2, "zero"), (4, "zero"), (4, "minmax")):
        zero, reciprocal, step = quantization_grid.reference(rows.amin(1), rows.amax(1), bits, grid)
        total = torch.zeros_like(g)
        for draw in range(DRAWS):
            codes = quantize_samples.reference(g, None, None, zero, reciprocal, key(draw, role=0), bits)
            total += codes * step.view(-1, 1, 1) + zero.view(-1, 1, 1)
        bound = 5 * 0.5 * step.view(-1, 1, 1) / DRAWS**0.5 + step.view(-1, 1, 1) * 2**-18
        assert ((total / DRAWS - g).abs() <= bound).all()
