"""The benchmark of products: what it times computes something, and its rows say what was timed."""

import pytest

from tools.bench_gemm import interleaved_medians, measure


def test_a_row():
    row = measure((64, 32, 96), ceiling=1e12, turns=1)
    assert (row.m, row.n, row.k) == (64, 32, 96)
    assert min(row.ours_s, row.fp32_s, row.bf16_s) > 0
    assert row.gmacs == pytest.approx(64 * 32 * 96 / row.ours_s / 1e9)
    assert row.share_of_ceiling == pytest.approx(row.gmacs / 1e3)
    assert row.ratio_fp32 == pytest.approx(row.fp32_s / row.ours_s)


def test_contenders_take_turns():
    calls = []
    medians = interleaved_medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, turns=3)
    assert medians.keys() == {"a", "b"}
    assert calls[0] == "a"
    assert calls.index("b") < len(calls) - calls[::-1].index("a")
