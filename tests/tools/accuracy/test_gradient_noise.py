import numpy as np
import pytest

from tools.accuracy.gradient_noise import WHOLE, GradientProbe, gradient_noise
from tools.accuracy.networks import NETWORKS, initial_state


def draws(true, scale, shift, count=200):
    generator = np.random.default_rng(0)
    return [{n: g + shift + scale * generator.standard_normal(g.shape) for n, g in true.items()} for _ in range(count)]


@pytest.fixture(scope="module")
def true():
    return {"a": np.ones((4, 5)), "b": np.full(30, -2.0)}


def test_variance_bias_and_cosine_of_known_noise(true):
    a, b, whole = gradient_noise(true, draws(true, scale=0.5, shift=0.0))
    assert (a.layer, b.layer, whole.layer) == ("a", "b", WHOLE)
    assert a.variance == pytest.approx(0.25, rel=0.05)
    assert whole.variance == pytest.approx(50 * 0.25 / 140, rel=0.05)
    assert a.unbiasedness == pytest.approx(1, abs=0.4)
    assert a.bias == pytest.approx(0, abs=1e-3)
    assert b.cosine == pytest.approx((1 + 0.25 / 4) ** -0.5, rel=0.01)


def test_a_shift_is_bias(true):
    a, _, _ = gradient_noise(true, draws(true, scale=0.1, shift=0.3))
    assert a.bias == pytest.approx(0.09, rel=0.02)
    assert a.unbiasedness > 100


@pytest.mark.slow
def test_a_compiled_step_gives_its_gradient(tmp_path):
    network = NETWORKS["digits"]
    first, again, other = (GradientProbe(network, "once-4", 5, 16, tmp_path) for _ in range(3))
    weights = initial_state(network, 5, 0)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((16, 1, 8, 8), dtype=np.float32), generator.integers(0, 5, 16)
    pairs = ((first, 1), (again, 1), (other, 2))
    first, again, other = (probe.gradients(weights, x, y, seed) for probe, seed in pairs)
    assert list(first) == ["features.3.weight", "features.7.weight", "features.10.weight"]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
