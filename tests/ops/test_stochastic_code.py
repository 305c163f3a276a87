"""Laws of quantization: codes in range, values within a step, and an expectation that is the value itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.lib import stochastic_code
from fqt_deploy.ops.lib.stochastic_code import FRACTION, rounded
from fqt_deploy.ops.quantization.quantization_grid import SMALLEST_RANGE, QuantizationGrid
from fqt_deploy.ops.quantization.quantize_channels import QuantizeChannels
from fqt_deploy.ops.quantization.quantize_samples import QuantizeSamples
from fqt_deploy.ops.selection.stream_key import StreamKey

quick = settings(max_examples=60, deadline=None)
GRIDS = [(1, "minmax"), (2, "minmax"), (2, "zero"), (4, "minmax"), (4, "zero"), (8, "minmax"), (8, "zero")]
DRAWS = 4000


def key(step=0):
    return StreamKey(torch.tensor(7), torch.tensor(step), 3, 0).reference()


def gradient(shape, seed, scale):
    """Rows of different size, with zeros among them as backward of ReLU leaves them; the first is constant."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-4, 4, (shape[0], 1, 1), generator=generator)
    g = g * torch.randint(0, 2, shape, generator=generator) * scale
    g[0] = scale * float(torch.randint(-1, 2, (), generator=generator))
    return g


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 40))


@given(SHAPES, st.integers(0, 2**31), st.sampled_from(GRIDS), st.sampled_from([1e-20, 1.0, 1e20]), st.integers(0, 9))
@quick
def test_codes_are_in_range_and_values_within_a_step(shape, seed, grid, scale, step):
    """For both quantizers, whose groups lie on the first and on the last axis."""
    bits, kind = grid
    g = gradient(shape, seed, scale)
    for quantizer, groups in ((QuantizeSamples, g.flatten(1)), (QuantizeChannels, g.flatten(0, 1).t())):
        zero, reciprocal, delta = QuantizationGrid(groups.amin(1), groups.amax(1), bits, kind).reference()
        operands = (None, None) if quantizer is QuantizeSamples else (None,)
        codes = quantizer(g, *operands, zero, reciprocal, key(step), bits).reference()
        rows = codes.flatten(1) if quantizer is QuantizeSamples else codes.flatten(0, 1).t()
        assert int(rows.max()) < 2**bits
        values = (rows * delta[:, None] + zero[:, None]).double()
        slack = 1 + 2.0 ** (1 - FRACTION) * 2**bits  # of the grid of the noise and of float32
        assert ((values - groups).abs() <= delta[:, None] * slack).all()
        if kind == "zero":
            assert (values[groups == 0] == 0).all(), "zero is on the grid"


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from(GRIDS))
@quick
def test_a_constant_group(value, grid):
    """Exactly itself with ``minmax``; with ``zero`` it and 0 are the ends of a grid, unless it is too small for one."""
    bits, kind = grid
    g = torch.full((1, 2, 3), value)
    zero, reciprocal, delta = QuantizationGrid(g.amin((1, 2)), g.amax((1, 2)), bits, kind).reference()
    values = QuantizeSamples(g, None, None, zero, reciprocal, key(), bits).reference() * delta + zero
    if kind == "minmax":
        assert torch.equal(values, g)
    else:
        assert delta > 0 or abs(value) <= SMALLEST_RANGE
        assert ((values - g).abs() <= delta * 1.001 + SMALLEST_RANGE).all()


@given(st.floats(0, 1), st.sampled_from(GRIDS))
@settings(max_examples=10, deadline=None)
def test_the_expectation_over_all_noise_is_the_value(position, grid):
    """Every value that the noise can take, once each: the mean code is the value, up to the grid of the noise."""
    bits, kind = grid
    low, high = torch.tensor([-0.75]), torch.tensor([2.0])
    value = low + position * (high - low)
    zero, reciprocal, _ = QuantizationGrid(low, high, bits, kind).reference()
    noise = torch.arange(2**FRACTION) << (32 - FRACTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stochastic_code, "element_hash", lambda *_: noise)
        mean = rounded(value, zero, reciprocal, noise, key(), bits).double().mean()
    wanted = (value.double() - zero.double()) * reciprocal.double()
    # the fixed point number is cut off, and computed in float32, whose step at 2^bits is below 2^(bits - 23)
    assert abs(float(mean - wanted)) <= 2.0**-FRACTION + 2.0 ** (bits - 22)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_mean_of_draws_is_the_value(grid):
    """With the noise itself: the error of the mean of D codes is at most 5 standard errors, step / sqrt(4 D) each."""
    bits, kind = grid
    g = torch.randn(16, generator=torch.Generator().manual_seed(2)).expand(DRAWS, 1, 16)
    zero, reciprocal, delta = QuantizationGrid(g[0].amin(1), g[0].amax(1), bits, kind).reference()
    codes = QuantizeSamples(g, None, None, zero.expand(DRAWS), reciprocal.expand(DRAWS), key(), bits).reference()
    mean = (codes.double() * delta + zero).mean(0)
    assert ((mean - g[0]).abs() <= delta * (5 * 0.5 / DRAWS**0.5 + 2.0 ** (bits - FRACTION))).all()
