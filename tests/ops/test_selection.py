"""Laws of selection: exactly K groups, the largest ones or unbiased ones; one group, ties and constants among them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.selection import select_sampled
from fqt_deploy.ops.selection.select_sampled import SelectSampled
from fqt_deploy.ops.selection.select_topk import SelectTopk
from fqt_deploy.ops.selection.stream_key import StreamKey

SCORES = st.one_of(
    st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    st.lists(st.sampled_from([0.0, 1e-30, 1.0]), min_size=1, max_size=40),
    st.integers(1, 40).map(lambda count: [0.25] * count),
)


DRAWS = 500


def key(step, role=2):
    return StreamKey(torch.tensor(7), torch.tensor(step), 3, role).reference()


@given(SCORES, st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_sampling_keeps_exactly_k(scores, keep, step):
    keep = min(keep, len(scores))
    index, slot, weight = SelectSampled(torch.tensor(scores), key(step), keep).reference()
    assert index.shape == weight.shape == (keep,)
    assert (index[1:] > index[:-1]).all()
    assert slot[index.long()].tolist() == list(range(keep))
    assert int((slot >= 0).sum()) == keep
    assert (weight >= 1).all()


@given(SCORES, st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_topk_keeps_the_largest_and_of_equal_ones_the_first(scores, keep):
    keep = min(keep, len(scores))
    index, slot, weight = SelectTopk(torch.tensor(scores), keep).reference()
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert index.tolist() == sorted(ranked[:keep])
    assert slot.tolist() == [index.tolist().index(i) if i in ranked[:keep] else -1 for i in range(len(scores))]
    assert weight.tolist() == [1.0] * keep


def certain_groups(scores, keep):
    """Those whose share of what is left would be a probability of 1 or more, largest first."""
    rest, certain = sorted(range(len(scores)), key=lambda i: -scores[i]), []
    while rest and (keep - len(certain)) * scores[rest[0]] >= sum(scores[i] for i in rest):
        certain.append(rest.pop(0))
    return certain


@given(st.lists(st.integers(1, 8), max_size=7), st.integers(1, 8), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_the_expectation_over_all_offsets_is_exact(others, keep, seed):
    """Over every offset of the sampling points, in any order: inclusion is proportional to the score, and the mean of
    kept or not, times the weight, is 1 for every group."""
    scores = [8, *others]
    groups, keep = len(scores), min(keep, len(scores))
    certain = certain_groups(scores, keep)
    total, draws = sum(scores) - sum(scores[i] for i in certain), keep - len(certain)
    shuffled = torch.randperm(groups, generator=torch.Generator().manual_seed(seed))
    count, mean = torch.zeros(groups, dtype=torch.int64), torch.zeros(groups, dtype=torch.float64)
    for offset in range(max(total, 1)):
        noise = torch.cat([shuffled, torch.tensor([-(-(offset << 32) // max(total, 1))])])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(select_sampled, "SCORE_BITS", 3)  # the scores themselves, as the largest is 2^3
            patch.setattr(select_sampled, "element_hash", lambda *_, noise=noise: noise)
            index, _, weight = SelectSampled(torch.tensor(scores, dtype=torch.float32), key(0), keep).reference()
        count[index.long()] += 1
        mean[index.long()] += weight.double()
    tries = max(total, 1)
    assert count.tolist() == [tries if i in certain else draws * scores[i] for i in range(groups)]
    torch.testing.assert_close(mean / tries, torch.ones(groups, dtype=torch.float64), rtol=1e-6, atol=0)


def test_sampled_sums_are_unbiased():
    """The mean of D estimates, with the noise itself, lies within 5 standard errors of each value."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(24, generator=generator) * torch.rand(24, generator=generator) ** 3
    estimates = torch.zeros(DRAWS, 24)
    for draw in range(DRAWS):
        index, _, weight = SelectSampled(values.abs(), key(draw), 6).reference()
        estimates[draw, index.long()] = values[index.long()] * weight
    # variance of value / p, drawn with probability p, is value^2 (1 / p - 1), and p is at least K |value| / sum
    probability = (6 * values.abs() / values.abs().sum()).clamp(max=1)
    error = values.abs() / (probability * DRAWS).sqrt()
    assert ((estimates.mean(0) - values).abs() <= 5 * error).all()
