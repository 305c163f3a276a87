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


decorators: Any = script
"""Whose the decorators of ``_of`` are, ours or TVM's; the parser looks them up among the names of this module."""


def _of(lanes: int) -> Any:
    zeros = (0.0,) * lanes
    place = {"value": 3}

    @decorators.macro
    def add(result: Any, x: Any, i: Any, *, times: int = 1) -> None:
        result[i] += x[i] * T.float32(times) if lanes > 4 and not times < 0 else x[i]

    @decorators.prim_func(s_tir=True)
    def kernel(x: T.Buffer((lanes,), "float32"), result: T.Buffer((lanes,), "float32")):
        for i in T.serial(*[lanes]):
            result[i] = T.max(*(x[i], T.float32(zeros[-1])))
            add(result, x, i, times=place["value"])
            add(result, x, i, **{"times": len(zeros)})
        result[0:lanes] = T.Broadcast(T.float32(1), lanes)

    return kernel


@pytest.mark.parametrize("lanes", [4, 8])
def test_one_function_writes_kernels_with_other_values(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = _of(lanes)
    monkeypatch.setitem(globals(), "decorators", T)
    tvm.ir.assert_structural_equal(ours, _of(lanes))


def test_a_kernel_says_what_is_wrong_with_it() -> None:
    with pytest.raises(tvm.error.DiagnosticError, match="unknown"):

        @script.prim_func(s_tir=True)
        def kernel(x: T.Buffer((LANES,), "float32")):
            x[0] = unknown  # noqa: F821 - that is what is wrong


def test_a_kernel_after_one_that_failed_is_right() -> None:
    with pytest.raises(tvm.error.DiagnosticError):

        @script.prim_func(s_tir=True)
        def kernel(x: T.Buffer((LANES,), "float32")):
            x[0] = x.nothing

    tvm.ir.assert_structural_equal(_ours(), _theirs())
