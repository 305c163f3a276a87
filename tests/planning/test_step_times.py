"""What a choice costs: the kernels of its layer, and those of other modules beside it."""

import numpy as np
import pytest

from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.planning.step_times import StepTime, change


def step(*kernels):
    """A step whose kernels are given as layer and seconds."""
    infos = tuple(KernelInfo("k", "conv2d", layer, "forward") for layer, _ in kernels)
    seconds = np.array([seconds for _, seconds in kernels])
    return StepTime(infos, steps=[seconds.sum() * each for each in (1, 1, 1, 3)], calls=[seconds, seconds, 5 * seconds])


def test_kernels_of_other_modules_lie_between_two_layers():
    base = step(("norm0", 1.0), ("a", 2.0), ("norm1", 4.0), ("b", 8.0), ("", 16.0), ("b", 32.0), ("norm1", 64.0))
    assert base.places(["a", "b"]) == {("a",): 3.0, ("a", "b"): 4.0, ("b",): 120.0}
    assert base.seconds == 127.0


def test_layers_that_changed_answer_for_what_lies_beside_them():
    base = step(("a", 2.0), ("norm", 4.0), ("b", 8.0), ("relu", 1.0), ("c", 3.0))
    other = step(("a", 5.0), ("norm", 6.0), ("b", 9.0), ("c", 4.0))
    layers = ["a", "b", "c"]
    assert change(other, base, layers, layers) == {"a": 3.0 + 1.0, "b": 1.0 + 1.0 - 0.5, "c": 1.0 - 0.5}
    assert change(other, base, layers, ["a", "c"]) == {"a": 3.0 + 2.0, "c": 1.0 - 1.0}
    everything = sum(change(other, base, layers, layers).values())
    assert everything == pytest.approx(other.seconds - base.seconds)
