"""The frontier of all plans: beside trying every one of them."""

import itertools

import numpy as np
import pytest

from fqt_deploy.planning.choose import TICKS, frontier, least_noise, least_time


def every_pick(times, noises):
    for choices in itertools.product(*(range(len(each)) for each in times)):
        yield (
            sum(each[number] for each, number in zip(times, choices, strict=True)),
            sum(each[number] for each, number in zip(noises, choices, strict=True)),
        )


@pytest.mark.parametrize("seed", range(5))
def test_no_pick_beats_the_frontier(seed):
    generator = np.random.default_rng(seed)
    times = generator.uniform(0, 10, (5, 4)).tolist()
    noises = generator.uniform(0, 1, (5, 4)).tolist()
    picks = frontier(times, noises)
    assert [pick.time for pick in picks] == sorted(pick.time for pick in picks)
    assert [pick.noise for pick in picks] == sorted((pick.noise for pick in picks), reverse=True)
    tolerance = len(times) * 50 / TICKS  # a layer's time is rounded to a part of the range of sums
    for time, noise in every_pick(times, noises):
        assert any(pick.time <= time + tolerance and pick.noise <= noise + 1e-9 for pick in picks)
    for pick in picks:
        assert pick.time == pytest.approx(sum(times[i][number] for i, number in enumerate(pick.choices)))
        assert pick.noise == pytest.approx(sum(noises[i][number] for i, number in enumerate(pick.choices)))


def test_whole_numbers_are_exact():
    times, noises = [[0, 5, 9], [0, 3, 20]], [[6.0, 2.0, 0.0], [5.0, 1.0, 0.0]]
    found = [(pick.time, pick.noise, pick.choices) for pick in frontier(times, noises)]
    assert found == [
        (0, 11.0, (0, 0)), (3, 7.0, (0, 1)), (8, 3.0, (1, 1)), (12, 1.0, (2, 1)), (29, 0.0, (2, 2))
    ]  # fmt: skip


def test_the_best_pick_under_a_budget():
    picks = frontier([[0, 5, 9]], [[6.0, 2.0, 0.0]])
    assert least_noise(picks, 8.9).choices == (1,)
    assert least_noise(picks, -0.1) is None
    assert least_time(picks, 2.0).choices == (1,)
    assert least_time(picks, -0.1) is None


def test_layers_without_a_choice_that_matters():
    assert [pick.choices for pick in frontier([[1.0, 1.0]], [[0.5, 0.5]])] == [(0,)]
    assert [pick.choices for pick in frontier([], [])] == [()]


def test_a_hundred_layers_take_little_time():
    generator = np.random.default_rng(0)
    picks = frontier(generator.uniform(0, 1, (100, 6)).tolist(), generator.uniform(0, 1, (100, 6)).tolist())
    assert len(picks) > 100
