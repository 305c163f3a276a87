"""The predicted speed on many devices."""

import pytest

from tools.simulate_scaling import LINKS, Exchange, Link, Step, efficiency, limit, table

STEP = Step(seconds=0.1, elements=10**6, overlap=0.0, encode_s=0.01)
LINK = Link("test", 1e8, 1e-3)


def test_ring_and_tree_take_what_their_messages_take():
    assert Exchange("ring", 32).seconds(STEP, LINK, 4) == pytest.approx((2 * 3 / 4 * 4e6 / 1e8, 6e-3))
    assert Exchange("tree", 32).seconds(STEP, LINK, 8) == pytest.approx((2 * 4e6 / 1e8, 6e-3))
    assert Exchange("ring", 4).seconds(STEP, LINK, 4)[0] == pytest.approx(2 * 3 / 4 * 5e5 / 1e8)


def test_efficiency_counts_what_is_not_hidden():
    assert efficiency(STEP, Exchange("ring", 32), LINK, 1) == 1
    assert efficiency(STEP, Exchange("ring", 32), LINK, 2) == pytest.approx(0.1 / (0.1 + 0.04 + 0.002))
    assert efficiency(STEP, Exchange("ring", 4), LINK, 2) == pytest.approx(0.1 / (0.1 + 0.01 + 0.005 + 0.002))
    hidden = Step(0.1, 10**6, overlap=0.5, encode_s=0)
    assert efficiency(hidden, Exchange("ring", 32), LINK, 2) == 1


def test_it_says_where_it_stops_and_why():
    assert limit(STEP, Exchange("ring", 4), LINK)[1] == "latency"
    slow = Link("slow", 1e6, 0)
    assert limit(STEP, Exchange("tree", 32), slow) == (1, "bandwidth")
    assert limit(STEP, Exchange("tree", 32), Link("fast", 1e12, 0)) == (None, "")
    assert table(STEP, LINKS).count("\n") == 13


def test_kept_rows_go_to_all_others_while_that_is_less_than_a_ring():
    pruned = Step(seconds=0.1, elements=10**6, overlap=0.0, encode_s=0.0, kept=0.25)
    rows = Exchange("rows", 32)
    assert rows.seconds(pruned, LINK, 2) == pytest.approx((1e6 / 1e8, 1e-3))
    assert rows.seconds(pruned, LINK, 7) == pytest.approx((6 * 1e6 / 1e8, 6e-3))
    assert rows.seconds(pruned, LINK, 8) == Exchange("ring", 32).seconds(pruned, LINK, 8)
    assert table(pruned, LINKS).count("rows, 32 bits") == len(LINKS)
