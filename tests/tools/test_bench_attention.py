"""The benchmark of attention: a row says what was timed, and what is timed is checked beside PyTorch."""

import pytest

from tools.bench_attention import Shape, measure


@pytest.mark.quick
@pytest.mark.parametrize("causal", [False, True])
def test_a_row(causal):
    shape = Shape(batch=2, heads=2, length=20, depth=16, causal=causal)
    row = measure(shape, turns=1)
    assert row.shape is shape
    assert min(row.forward_s, row.torch_forward_s, row.backward_s, row.torch_backward_s) > 0
    assert row.forward_ratio == pytest.approx(row.torch_forward_s / row.forward_s)
    assert row.backward_ratio == pytest.approx(row.torch_backward_s / row.backward_s)
