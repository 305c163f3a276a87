"""What a caller passes becomes one value for each input: by name where there is one, the rest in order."""

import numpy as np
import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec
from fqt_deploy.runtime.bind_batch import bind_batch

A, B, Y = np.zeros(2), np.ones(2), np.arange(2)
SPECS = [InputSpec(name, (2,), "float32", "input") for name in ("a", "b")] + [InputSpec("y", (2,), "int64", "target")]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((A, B, Y), {}),
        (((A, B), Y), {}),
        (([A, [B]], Y), {}),
        ((), {"y": Y, "a": A, "b": B}),
        (({"b": B, "a": A}, Y), {}),
        (({"y": Y, "b": B, "a": A, "other": None},), {}),
        ((B, Y), {"a": A}),
    ],
)
def test_values_find_their_places(values, named):
    found = bind_batch(SPECS, values, named)
    assert [x is y for x, y in zip(found, (A, B, Y), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("values", "named", "said"),
    [
        ((A, Y), {}, "there is no value for y"),
        ((), {}, "there is no value for a, b, y"),
        ((A, B, Y, Y), {}, "4 arrays are passed by position, and there are 3 inputs"),
        ((A, B, Y), {"y": Y}, "3 arrays are passed by position, and there are 2 inputs besides y"),
        ((), {"a": A, "b": B, "y": Y, "c": A}, "there is no input c; the inputs are a, b, y"),
        (({"a": A},), {"a": A, "b": B, "y": Y}, "a is passed twice"),
        (({"a": {"left": A}, "b": B}, Y), {}, "there is no input a.left"),
    ],
)
def test_what_finds_none_is_refused(values, named, said):
    with pytest.raises(FqtError, match="FQT505") as caught:
        bind_batch(SPECS, values, named)
    assert said in caught.value.message


def test_nested_arrays_go_by_their_path_and_targets_may_be_there():
    specs = [InputSpec(name, (2,), "float32", "input") for name in ("pair.0", "pair.left")]
    assert bind_batch(specs, ({"pair": {"0": A, "left": B}},), {})[1] is B
    assert bind_batch(SPECS[:2], (), {"a": A, "b": B, "y": Y}, ignored=SPECS[2:])[0] is A
    assert bind_batch(SPECS[:2], ([1, 2], B), {})[0] == [1, 2]
