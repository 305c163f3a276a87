"""What LLVM makes of straight-line code: short reductions, whose iterations it unrolls all."""

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from fqt_deploy.codegen.kernel_objects import PASS_CONFIG
from fqt_deploy.targets.cpu.features import WITHOUT_SLP
from fqt_deploy.targets.cpu.target import aarch64_target, cpu_target


@T.prim_func(s_tir=True)
def smallest(a: T.Buffer((3, 23), "float32"), b: T.Buffer((23,), "float32"), result: T.Buffer((3,), "float32")):
    """The smallest product of each row, as the kernels of amin compute it: integers in the order of the floats."""
    T.func_attr({"tirx.is_scheduled": True, "tirx.noalias": True})
    keys = T.sblock_alloc_buffer((3,), "int32")
    for i, j in T.grid(3, 23):
        with T.sblock("keys"):
            row, column = T.axis.remap("SR", [i, j])
            with T.init():
                keys[row] = 2147483647
            keys[row] = T.min(
                keys[row],
                T.Select(
                    not T.Cast(
                        "bool",
                        T.Cast(
                            "int8",
                            a[row, column] * b[column]
                            == T.reinterpret("float32", T.reinterpret("uint32", a[row, column] * b[column])),
                        ),
                    ),
                    -2143289345,
                    T.reinterpret("int32", a[row, column] * b[column])
                    ^ T.reinterpret("int32", a[row, column] * b[column]) >> 31 & 2147483647,
                ),
            )
    for i in range(3):
        with T.sblock("result"):
            row = T.axis.spatial(3, i)
            result[row] = T.reinterpret("float32", keys[row] ^ keys[row] >> 31 & 2147483647)


def compiled(target):
    with target, tvm.transform.PassContext(config=PASS_CONFIG):
        return tvm.compile(tvm.IRModule({"smallest": smallest}), target)


def test_a_short_reduction_takes_the_smallest_number():
    """LLVM 22 takes bits of other numbers for it with its vectorizer of straight-line code, on AVX-512."""
    function = compiled(cpu_target(None).tvm_target)["smallest"]
    generator = np.random.default_rng(0)
    for _ in range(50):
        a, b = (generator.standard_normal(shape, dtype=np.float32) for shape in ((3, 23), 23))
        result = tvm.runtime.tensor(np.zeros(3, np.float32))
        function(tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
        np.testing.assert_array_equal(result.numpy(), (a * b).min(1))


@pytest.mark.parametrize("target", [cpu_target(None), cpu_target("x86-64-v3"), aarch64_target(None)])
def test_no_target_vectorizes_straight_line_code(target):
    assert WITHOUT_SLP in target.tvm_target.attrs["cl-opt"]
