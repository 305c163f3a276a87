"""Codes of gradients: unbiased, an eighth of the bytes, the generator of the compiled step."""

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.lib.counter_random import element_hash
from fqt_deploy.runtime.channel_codes import Draws, encoded_bytes
from fqt_deploy.runtime.group import mixed_seed, rank_seed
from tests.distributed.conftest import CODED, PLAIN


@pytest.fixture(scope="module")
def channel_codes(compiled):
    return fqt_deploy.load(compiled(**CODED)).functions.channel_codes()


@pytest.fixture(scope="module")
def there_and_back(channel_codes):
    """Encodes values with the first key of a seed, and decodes them."""

    def both(values, seed):
        codes = np.zeros(len(values) * encoded_bytes(values.shape[1]), np.uint8)
        channel_codes.encode(values, Draws(seed).key(), codes)
        result = np.full_like(values, np.nan)
        channel_codes.decode(codes, result, add=False)
        return result

    return both


def codes_in_numpy(values, key):
    """The same codes, by their definition."""
    channels, elements = values.shape
    scale = np.abs(values).max(axis=1, keepdims=True) * np.float32(1 / 7)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    pairs = (elements + 1) // 2
    words = torch.tensor([key & 0xFFFFFFFF, key >> 32])
    random = element_hash(torch.arange(channels * pairs), words).numpy().astype(np.uint32)
    uniform = (random.view(np.uint16).reshape(channels, 2 * pairs) / np.float32(65536)).astype(np.float32)
    padded = np.pad(values, ((0, 0), (0, 2 * pairs - elements)))
    numbers = np.clip(padded * inverse + uniform + np.float32(7), 0, 14).astype(np.uint8)
    numbers[:, elements:] = 7
    packed = numbers[:, ::2] | numbers[:, 1::2] << 4
    return np.concatenate([scale.view(np.uint8).reshape(channels, 4), packed], axis=1).reshape(-1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 33), (2, 70001), (300, 64)])
def test_codes_are_those_of_the_definition(channel_codes, shape):
    values = np.random.default_rng(2).standard_normal(shape).astype("float32")
    values[0] = 0
    key = mixed_seed(9, 4)
    codes = np.zeros(shape[0] * encoded_bytes(shape[1]), np.uint8)
    channel_codes.encode(values, key, codes)
    expected = codes_in_numpy(values, key)
    assert np.array_equal(codes, expected)


def test_arrays_of_other_shapes_are_refused(channel_codes):
    values = np.zeros((3, 8), np.float32)
    with pytest.raises(ValueError, match="no codes of"):
        channel_codes.encode(values, 0, np.zeros(8, np.uint8))
    with pytest.raises(ValueError, match="no codes of"):
        channel_codes.decode(np.zeros(24, np.uint8), values.T, add=False)


@pytest.mark.thorough
def test_a_step_that_sends_no_codes_has_none(compiled):
    library = fqt_deploy.load(compiled(**PLAIN, distributed="fp32")).functions
    with pytest.raises(FqtError) as raised:
        library.channel_codes()
    assert raised.value.code == "FQT503"


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 33), (2, 70001), (40000, 2)])
def test_errors_stay_within_one_level(there_and_back, shape):
    values = np.random.default_rng(0).standard_normal(shape).astype("float32")
    result = there_and_back(values, 3)
    level = np.abs(values).max(axis=1, keepdims=True) / 7
    assert (np.abs(result - values) <= level * 1.0001).all()


def test_rounding_has_no_bias(there_and_back):
    values = np.random.default_rng(1).standard_normal((6, 50)).astype("float32")
    rounds = 4000
    mean = sum(there_and_back(values, seed).astype("float64") for seed in range(rounds)) / rounds
    level = np.abs(values).max(axis=1, keepdims=True) / 7
    # A rounded value is off by at most half a level in standard deviation.
    assert (np.abs(mean - values) <= 5 * level / 2 / rounds**0.5 + level * 2**-16).all()


def test_zeros_and_nan_are_kept(there_and_back):
    values = np.zeros((3, 9), np.float32)
    values[1, 4] = np.nan
    values[2] = np.linspace(-7, 7, 9)
    result = there_and_back(values, 0)
    assert (result[0] == 0).all()
    assert np.isnan(result[1]).all()
    assert (result[2, [0, 4, 8]] == values[2, [0, 4, 8]]).all()


def test_decoded_numbers_are_added(channel_codes):
    values = np.float32([[1, -7, 3]])
    codes = np.zeros(encoded_bytes(3), np.uint8)
    channel_codes.encode(values, 0, codes)
    sums = np.float32([[10, 20, 30]])
    channel_codes.decode(codes, sums, add=True)
    assert sums.tolist() == [[11, 13, 33]]


def test_no_key_is_taken_twice():
    draws = Draws(5)
    keys = [draws.key() for _ in range(100)]
    assert keys[:2] == [mixed_seed(5, 0), mixed_seed(5, 1)]
    assert len(set(keys)) == 100
    assert Draws(6).key() not in keys


def test_processes_have_seeds_of_their_own():
    seeds = {rank_seed(seed, rank) for seed in (-1, 0, 1, 2**62) for rank in range(1000)}
    assert len(seeds) == 4000
    assert rank_seed(41, 0) == 41
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
