"""The benchmark of products: what it times computes something, and its rows say what was timed."""

import time

import pytest

from tools import bench_gemm
from tools.bench_gemm import interleaved_medians, measure, peak_product


def test_a_ceiling_counts_what_every_thread_multiplies(monkeypatch):
    monkeypatch.setattr(bench_gemm, "PEAK_SHAPES", bench_gemm.PEAK_SHAPES[:1])  # of several the fastest counts
    run, macs = peak_product(threads=2)
    run()
    assert macs == 2 * peak_product(threads=1)[1]


@pytest.mark.parametrize("bits", [1, 4])
def test_a_row(bits):
    row = measure((64, 32, 96), peak=(lambda: time.sleep(1e-3), 10**9), turns=1, bits=bits)
    assert (row.m, row.n, row.k) == (64, 32, 96)
    assert min(row.ours_s, row.fp32_s, row.bf16_s) > 0
    assert row.gmacs == pytest.approx(64 * 32 * 96 / row.ours_s / 1e9)
    assert 100 < row.ceiling_gmacs < 1000
    assert row.share_of_ceiling == pytest.approx(row.gmacs / row.ceiling_gmacs)
    assert row.ratio_fp32 == pytest.approx(row.fp32_s / row.ours_s)


def test_contenders_take_turns():
    calls = []
    medians = interleaved_medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, turns=3)
    assert medians.keys() == {"a", "b"}
    assert calls[0] == "a"
    assert calls.index("b") < len(calls) - calls[::-1].index("a")
