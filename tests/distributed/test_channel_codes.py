"""Codes of gradients: unbiased, an eighth of the bytes, the generator of the compiled step."""

import numpy as np
import pytest
import torch

from fqt_deploy.distributed.channel_codes import Draws, decode, encode, encoded_bytes
from fqt_deploy.ops.lib.counter_random import element_hash
from fqt_deploy.runtime.group import mixed_seed, rank_seed


def there_and_back(values, seed):
    codes = np.zeros(len(values) * encoded_bytes(values.shape[1]), np.uint8)
    encode(values, Draws(seed), codes)
    result = np.full_like(values, np.nan)
    decode(codes, result, add=False)
    return result


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 33), (2, 70001), (40000, 2)])
def test_errors_stay_within_one_level(shape):
    values = np.random.default_rng(0).standard_normal(shape).astype("float32")
    result = there_and_back(values, 3)
    level = np.abs(values).max(axis=1, keepdims=True) / 7
    assert (np.abs(result - values) <= level * 1.0001).all()


def test_rounding_has_no_bias():
    values = np.random.default_rng(1).standard_normal((6, 50)).astype("float32")
    rounds = 4000
    mean = sum(there_and_back(values, seed).astype("float64") for seed in range(rounds)) / rounds
    level = np.abs(values).max(axis=1, keepdims=True) / 7
    # A rounded value is off by at most half a level in standard deviation.
    assert (np.abs(mean - values) <= 5 * level / 2 / rounds**0.5 + level * 2**-16).all()


def test_zeros_and_nan_are_kept():
    values = np.zeros((3, 9), np.float32)
    values[1, 4] = np.nan
    values[2] = np.linspace(-7, 7, 9)
    result = there_and_back(values, 0)
    assert (result[0] == 0).all()
    assert np.isnan(result[1]).all()
    assert (result[2, [0, 4, 8]] == values[2, [0, 4, 8]]).all()


def test_decoded_numbers_are_added():
    values = np.float32([[1, -7, 3]])
    codes = np.zeros(encoded_bytes(3), np.uint8)
    encode(values, Draws(0), codes)
    sums = np.float32([[10, 20, 30]])
    decode(codes, sums, add=True)
    assert sums.tolist() == [[11, 13, 33]]


def test_the_numbers_are_those_of_the_step_s_generator():
    draws = Draws(5)
    key = mixed_seed(5, 0)
    words = torch.tensor([key & 0xFFFFFFFF, key >> 32])
    hashes = element_hash(torch.arange(8), words).numpy().astype(np.uint32)
    expected = hashes.view(np.uint16).astype("float32") / 65536
    assert np.array_equal(draws.uniform(16), expected)
    assert not np.array_equal(draws.uniform(16), expected)


def test_processes_have_seeds_of_their_own():
    seeds = {rank_seed(seed, rank) for seed in (-1, 0, 1, 2**62) for rank in range(1000)}
    assert len(seeds) == 4000
    assert rank_seed(41, 0) == 41
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
