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
    """The first codes are an eighth apart, a mean has a sign, and the last code ends its range."""
    assert MEAN.table()[:10].tolist() == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.25]
    assert MEAN.table()[129] == -0.125
    assert (MEAN.range, SQUARE.range) == (1.875 * 2**15 - 1, 1.875 * 2**31)


@pytest.mark.parametrize("code", [MEAN, SQUARE])
def test_largest_and_zero_are_kept(code: MomentCode) -> None:
    """Whatever the random number: zero stays zero, and the largest of a block itself."""
    values, random = torch.tensor([0.0, 3.7e-5]).repeat(2, 1).T, torch.tensor([[0, 2**32 - 1]] * 2)
    kept = _coded(code, values, random)
    assert (kept[0] == 0).all()
    torch.testing.assert_close(kept[1], values[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("code", [MEAN, SQUARE])
def test_rounding_is_unbiased(code: MomentCode) -> None:
    """The mean over all random numbers, a grid of them, is the value."""
    random = torch.arange(0, 2**16) * (2**16 + 1)
    for share in (0.9, 0.3, 1e-3, 3e-5):
        values = torch.full((2**16,), share)
        kept = code.decoded(code.encoded(values, torch.tensor(1.0), random), code.scale(torch.tensor(1.0)))
        assert abs(kept.double().mean() / share - 1) < 1e-4


def test_square_never_becomes_zero() -> None:
    """A square beyond the range keeps the least code but zero, whose root is more than the least mean."""
    squares = torch.tensor([1.0, 1e-30])
    kept = _coded(SQUARE, squares, torch.zeros(2, dtype=torch.int64))
    assert kept[1] > 0
    assert MEAN.table()[1] * MEAN.scale(1.0) <= 2**-1.4 * (SQUARE.table()[1] * SQUARE.scale(1.0)) ** 0.5


@pytest.mark.parametrize(
    ("elements", "length"), [(768, 256), (576, 192), (64, 64), (4608, 256), (27, None), (1000, None)]
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
