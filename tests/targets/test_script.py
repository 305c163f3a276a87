"""Decorators for kernels written by hand parse what TVM's own ones do."""

from __future__ import annotations

from typing import Any

import pytest
import tvm
from tvm.script import tirx as T

from fqt_deploy.targets import script

LANES = 8


def _ours() -> Any:
    @script.macro
    def twice(result: Any, x: Any, i: Any) -> None:
        for _ in T.unroll(2):
            result[i] = result[i] + x[i] * T.float32(LANES)

    @script.prim_func(s_tir=True)
    def kernel(x: T.Buffer((LANES,), "float32"), result: T.Buffer((LANES,), "float32")):
        for i in T.parallel(LANES):
            twice(result, x, i)

    return kernel


def _theirs() -> Any:
    @T.macro
    def twice(result: Any, x: Any, i: Any) -> None:
        for _ in T.unroll(2):
            result[i] = result[i] + x[i] * T.float32(LANES)

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((LANES,), "float32"), result: T.Buffer((LANES,), "float32")):
        for i in T.parallel(LANES):
            twice(result, x, i)

    return kernel


def test_a_kernel_is_the_one_of_tvms_decorators() -> None:
    tvm.ir.assert_structural_equal(_ours(), _theirs())


def test_a_macro_outside_of_a_kernel_is_refused() -> None:
    @script.macro
    def nothing(x: Any) -> None:
        x[0] = 0

    with pytest.raises(RuntimeError, match="nothing is a macro"):
        nothing(None)


def test_types_may_name_what_the_body_does_not() -> None:
    shape = (LANES, LANES)

    @script.prim_func(s_tir=True)
    def kernel(x: T.Buffer(shape, "float32")):
        x[0, 0] = T.float32(0)

    (buffer,) = kernel.params
    assert tuple(int(extent) for extent in buffer.shape) == shape
