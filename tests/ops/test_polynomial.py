"""Polynomials: their values, and that they are fused where a kernel makes bits, as products of a model are not."""

import numpy as np
import pytest
import tvm
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops.lib.polynomial import polynomial
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.registry import make_target
from tests.ops.test_exponential import evaluate

COEFFICIENTS = (0.5, -1.25, 3.0, 0.125)


def test_value():
    values = np.linspace(-2, 2, 4097).astype("float32")
    expected = np.polyval(COEFFICIENTS[::-1], values.astype("float64"))
    np.testing.assert_allclose(evaluate(lambda x: polynomial(COEFFICIENTS, x), values), expected, rtol=0, atol=4e-6)


def test_a_constant():
    np.testing.assert_array_equal(evaluate(lambda x: polynomial((0.5,), x) + x, np.ones(3, "float32")), [1.5] * 3)


@pytest.mark.parametrize(("level", "fused"), [("x86-64-v2", 0), ("x86-64-v3", len(COEFFICIENTS) - 1)])
def test_kernels_that_make_bits_fuse_it_where_the_processor_can(level, fused):
    if not make_target("cpu").features.is_x86:
        pytest.skip("these are levels of x86")
    target = make_target("cpu", CpuOptions(mcpu=level))
    x = te.placeholder((64,), "float32", name="x")
    y = te.compute((64,), lambda i: (polynomial(COEFFICIENTS, x[i]) + x[i] * 3.0 > 1.0).astype("int32"), name="y")
    attributes = {"fqt.op": "gt", "fqt.outputs": 1, "global_symbol": "main", "tirx.noalias": True}
    function = target.schedule(te.create_prim_func([x, y]).with_attrs(attributes))
    assembly = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target).mod.inspect_source("asm")
    vectors = 64 // 8
    assert assembly.count("vfmadd") in (fused, fused * vectors), "the sum with 3 x is not fused"
