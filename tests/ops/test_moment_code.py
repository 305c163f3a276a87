"""Moments in 8 bits: what the codes stand for, that their rounding is unbiased, and that no update explodes."""

from __future__ import annotations

import pytest
import torch

from fqt_deploy.ops.lib.moment_code import LEAST, MEAN, SQUARE, MomentCode
from fqt_deploy.ops.optimizers.coded_adam_update import CodedAdamUpdate
from fqt_deploy.ops.optimizers.coded_moments_op import block_length


def _coded(code: MomentCode, values: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    largest = values.abs().max().clamp(min=LEAST)
    return code.decoded(code.encoded(values, largest, random), code.scale(largest))


def test_table_steps_evenly_then_by_eighths() -> None:
    """The first codes are a quarter apart, a mean has a sign and a zero, and a square begins with its least."""
    assert MEAN.table()[:10].tolist() == [0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5]
    assert MEAN.table()[129] == -0.25
    assert SQUARE.table()[:10].tolist() == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.75]
    assert (MEAN.table()[127], SQUARE.table()[255]) == (1.875 * 2**16 - 2, 1.875 * 2**32)


@pytest.mark.parametrize("code", [MEAN, SQUARE])
def test_largest_comes_to_the_last_code_or_the_one_below(code: MomentCode) -> None:
    """Whatever the largest and its random number: no code wraps around, and nearly all are the last."""
    largest = torch.logspace(-20, 20, 4096).unsqueeze(1)
    random = torch.tensor([0, 2**32 - 1, 2**31 + 2**19])
    codes = code.encoded(largest.expand(-1, 3), largest, random.expand(4096, -1))
    assert (codes[:, 0] >= code.last - 1).all()
    assert (codes[:, 1:] == code.last).all()
    assert 0 < 1 - code.range / float(code.table()[code.last]) < 2**-21


@pytest.mark.parametrize("random", [0, 2**32 - 1])
def test_zero_is_kept_of_means_and_is_the_least_square(random: int) -> None:
    """A mean of zero stays zero; a square of zero becomes 2^-35 of the largest of its block."""
    values, noise = torch.tensor([0.0, -0.0, 3.7e-5]), torch.full((3,), random)
    assert (_coded(MEAN, values, noise)[:2] == 0).all()
    assert (_coded(SQUARE, values, noise)[:2] <= 2**-34.9 * 3.7e-5).all()


@pytest.mark.parametrize("code", [MEAN, SQUARE])
def test_rounding_is_unbiased(code: MomentCode) -> None:
    """The mean over all random numbers is the value."""
    random = torch.arange(2**20) << code.shift
    for share in (1.0, 0.9, 0.3, 1e-3, 3e-5):
        values = torch.full((2**20,), share)
        kept = code.decoded(code.encoded(values, torch.tensor(1.0), random), code.scale(torch.tensor(1.0)))
        assert abs(kept.double().mean() / share - 1) < 2e-6


def test_noise_of_elements_is_independent_in_pairs() -> None:
    """Random numbers of two elements, over many streams: no lane, row or block is like another, in any bit."""
    param, grad = torch.zeros(4, 64), torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    codes, scale, generator = torch.zeros(4, 64, dtype=torch.uint8), torch.zeros(4, 2), torch.Generator().manual_seed(1)
    rounded = []
    for _ in range(2000):
        key = torch.randint(-(2**31), 2**31, (2,), generator=generator).int()
        _, m, v, m_scale, v_scale = CodedAdamUpdate(
            param, codes, codes, scale, scale, grad, key, torch.ones(1), torch.tensor(1), 0, 0.9, 0.999, 1e-8, 0.0,
            False, 1,
        ).reference()  # fmt: skip
        both = zip((MEAN, SQUARE), (m, v), (m_scale, v_scale), strict=True)
        rounded.append(torch.cat([c.decoded(x.view(4, 2, 32), s.unsqueeze(-1)).flatten() for c, x, s in both]))
    errors = torch.stack(rounded).double()
    errors = errors[:, errors.std(0) > 0.01 * errors.abs().mean(0)]
    correlation = torch.corrcoef(errors.T).fill_diagonal_(0)
    assert errors.shape[1] > 200
    assert correlation.abs().max() < 6 / 2000**0.5
    assert abs(correlation.mean()) < 1e-3


def test_square_never_becomes_zero() -> None:
    """A square beyond the range keeps the least code, whose root is more than the least mean but zero."""
    squares = torch.tensor([1.0, 1e-30])
    kept = _coded(SQUARE, squares, torch.zeros(2, dtype=torch.int64))
    assert kept[1] > 0
    assert MEAN.table()[1] * MEAN.scale(1.0) <= 2**-1.4 * (SQUARE.table()[0] * SQUARE.scale(1.0)) ** 0.5


@pytest.mark.parametrize(
    ("elements", "length"), [(768, 128), (576, 96), (64, 64), (4608, 128), (27, None), (1000, None)]
)
def test_block_length(elements: int, length: int | None) -> None:
    """The longest multiple of 16 that divides a row."""
    assert block_length(elements) == length


def test_updates_stay_bounded() -> None:
    """Gradients of all sizes in one block, most of which end: no parameter moves more than with Adam's own bound."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-12, 3, 256)
    param, m, v = torch.zeros(1, 256), torch.zeros(1, 256, dtype=torch.uint8), torch.zeros(1, 256, dtype=torch.uint8)
    m_scale, v_scale, rate = torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1)
    largest = 0.0
    for step in range(1, 301):
        grad = torch.randn(1, 256, generator=generator) * sizes
        if step > 5:
            grad[:, ::2] = 0
        if step > 100:
            grad.zero_()
        key = torch.randint(-(2**31), 2**31, (2,), generator=generator).int()
        new, m, v, m_scale, v_scale = CodedAdamUpdate(
            param, m, v, m_scale, v_scale, grad, key, rate, torch.tensor(step), 0, 0.9, 0.999, 1e-30, 0.0, False, 1
        ).reference()
        largest = max(largest, float((new - param).abs().max()))
        param = new
    assert largest < 2 * 7.3
