"""Transposing element-wise kernels: taken where columns are read, computed like the rest, left alone elsewhere."""

import numpy as np
import pytest
import tvm
from tvm import te

from fqt_deploy.targets.cpu.generic.transposition import TranspositionRule
from fqt_deploy.targets.registry import make_target

SAMPLES, ROWS, COLUMNS = 3, 32, 40


def kernel(axes, shape):
    """``x.transpose(axes)``, plus one number for each row of ``x``."""
    x = te.placeholder(shape, "float32", name="x")
    bias = te.placeholder((*shape[:-1], 1), "float32", name="bias")
    order = np.argsort(axes)

    def element(*index):
        at = [index[order[i]] for i in range(len(shape))]
        return x(*at) + bias(*at[:-1], 0)

    result = te.compute([shape[a] for a in axes], element, name="result")
    return te.create_prim_func([x, bias, result]).with_attrs({"fqt.op": "permute", "fqt.outputs": 1})


@pytest.mark.parametrize(
    ("axes", "shape"), [((0, 2, 1), (SAMPLES, ROWS, COLUMNS)), ((1, 0), (ROWS, COLUMNS)), ((2, 0, 1), (3, 16, 5))]
)
def test_columns_are_transposed(axes, shape):
    target = make_target("cpu")
    scheduled = TranspositionRule().apply(kernel(axes, shape), target.features)
    assert scheduled is not None
    r = np.random.default_rng(0)
    x, bias = (r.standard_normal(s, dtype=np.float32) for s in (shape, (*shape[:-1], 1)))
    result = tvm.runtime.empty([shape[a] for a in axes], "float32")
    with target.tvm_target:
        run = tvm.compile(scheduled.with_attr("global_symbol", "main"), target.tvm_target)
    run["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(bias), result)
    np.testing.assert_array_equal(result.numpy(), (x + bias).transpose(axes))


@pytest.mark.parametrize(
    ("axes", "shape"),
    [((1, 0, 2), (SAMPLES, ROWS, COLUMNS)), ((0, 1, 2), (SAMPLES, ROWS, COLUMNS)), ((0, 2, 1), (SAMPLES, 9, COLUMNS))],
)
def test_rows_and_narrow_columns_are_left_to_other_rules(axes, shape):
    target = make_target("cpu")
    assert TranspositionRule().apply(kernel(axes, shape), target.features) is None
