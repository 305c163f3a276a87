"""The noise of gradients: of draws, and of compiled steps."""

import numpy as np
import pytest

from fqt_deploy.planning.gradient_noise import gradient_noise


def test_noise_is_the_mean_squared_distance_in_squared_norms():
    exact = {"a": np.array([3.0, 4.0]), "b": np.array([0.0, 1.0]), "c": np.zeros(2)}
    draws = [
        {"a": np.array([3.0, 9.0]), "b": np.array([0.0, 1.0]), "c": np.zeros(2)},
        {"a": np.array([3.0, 4.0]), "b": np.array([1.0, 1.0]), "c": np.ones(2)},
    ]
    whole, layers = gradient_noise(exact, draws)
    assert layers == {"a": 12.5 / 25, "b": 0.5 / 1, "c": 0.0}
    assert whole == pytest.approx((12.5 + 0.5 + 1) / 26)
    assert gradient_noise(exact, [exact, exact])[0] == 0
