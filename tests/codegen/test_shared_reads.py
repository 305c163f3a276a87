"""What is inlined stands once in a formula, however often the formula reads it; the numbers stay."""

import numpy as np
import pytest
import tvm
from tvm import s_tir, te, tirx

from fqt_deploy.codegen.shared_reads import with_own_variables, with_shared_reads
from fqt_deploy.targets.cuda.whole_formulas import with_whole_formulas

SIZE = 64


def kernel(formula, shared=True):
    """A function of x, in which ``formula`` of a stage ``inner`` is written; ``inner`` is inlined."""
    x = te.placeholder((SIZE,), "float32", name="x")
    inner = te.compute((SIZE,), lambda i: tirx.sqrt(x[i]) + 1.0, name="inner")
    result = te.compute((SIZE,), lambda i: formula(inner, i), name="result")
    function = te.create_prim_func([x, result])
    schedule = s_tir.Schedule(with_shared_reads(function, ["inner"]) if shared else function)
    schedule.compute_inline(schedule.get_sblock("inner"))
    return with_own_variables(schedule.mod["main"])


def roots(function):
    return function.script().count("T.sqrt(")


def run(function):
    x = tvm.runtime.tensor(np.linspace(0, 9, SIZE, dtype=np.float32))
    result = tvm.runtime.tensor(np.zeros(SIZE, np.float32))
    tvm.compile(tvm.IRModule({"main": function}), "llvm")["main"](x, result)
    return result.numpy()


FORMULAS = {
    "twice": (lambda inner, i: inner[i] * inner[i], 1),
    "three times": (lambda inner, i: inner[i] * tirx.exp(-inner[i]) - inner[i], 1),
    "at two places": (lambda inner, i: inner[i] * inner[SIZE - 1 - i] - inner[i] / inner[SIZE - 1 - i], 2),
    "once": (lambda inner, i: inner[i] * 2.0, 1),
    "also under a condition": (lambda inner, i: tirx.if_then_else(i > 3, inner[i], 0.0) + inner[i], 1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_stands_once(name):
    formula, count = FORMULAS[name]
    function = kernel(formula)
    assert roots(function) == count
    np.testing.assert_array_equal(run(function), run(kernel(formula, shared=False)))


def test_what_may_not_exist_is_not_read_before_the_condition():
    def windowed(inner, i):
        return tirx.if_then_else(i < SIZE - 1, inner[i + 1] * inner[i + 1], 0.0)

    function = kernel(windowed)
    assert "T.Let" not in function.script()
    np.testing.assert_array_equal(run(function), run(kernel(windowed, shared=False)))


def test_stages_of_one_name_are_two():
    x = te.placeholder((SIZE,), "float32", name="x")
    one = te.compute((SIZE,), lambda i: tirx.sqrt(x[i]), name="inner")
    other = te.compute((SIZE,), lambda i: tirx.sqrt(x[i]) * 3.0, name="inner")
    result = te.compute((SIZE,), lambda i: one[i] * one[i] + other[i], name="result")
    schedule = s_tir.Schedule(with_shared_reads(te.create_prim_func([x, result]), ["inner", "inner_1"]))
    for name in ("inner", "inner_1"):
        schedule.compute_inline(schedule.get_sblock(name))
    root = np.sqrt(np.linspace(0, 9, SIZE, dtype=np.float32))
    np.testing.assert_allclose(run(with_own_variables(schedule.mod["main"])), root * root + 3 * root, rtol=1e-6)


def test_every_binding_has_a_variable_of_its_own():
    """A stage with a binding, inlined at two places, would bind one variable to two values."""
    x = te.placeholder((SIZE,), "float32", name="x")
    inner = te.compute((SIZE,), lambda i: tirx.sqrt(x[i]), name="inner")
    square = te.compute((SIZE,), lambda i: inner[i] * inner[i] + inner[i], name="square")
    result = te.compute((SIZE,), lambda i: square[i] - square[SIZE - 1 - i], name="result")
    schedule = s_tir.Schedule(with_shared_reads(te.create_prim_func([x, result]), ["inner", "square"]))
    for name in ("inner", "square"):
        schedule.compute_inline(schedule.get_sblock(name))
    function = with_own_variables(schedule.mod["main"])
    assert roots(function) == 2
    root = np.sqrt(np.linspace(0, 9, SIZE, dtype=np.float32))
    np.testing.assert_allclose(run(function), (root**2 + root) - (root**2 + root)[::-1], rtol=1e-5, atol=1e-5)


def test_a_sum_stays_one_that_tvm_knows():
    x = te.placeholder((SIZE, SIZE), "float32", name="x")
    inner = te.compute((SIZE, SIZE), lambda i, j: tirx.sqrt(x[i, j]), name="inner")
    j = te.reduce_axis((0, SIZE), "j")
    result = te.compute((SIZE,), lambda i: te.sum(inner[i, j] * inner[i, j], axis=j), name="result")
    schedule = s_tir.Schedule(with_shared_reads(te.create_prim_func([x, result]), ["inner"]))
    schedule.compute_inline(schedule.get_sblock("inner"))
    assert "T.Let" not in schedule.mod.script()
    partial = schedule.rfactor(schedule.get_loops(schedule.get_sblock("result"))[-1], 0)
    assert schedule.get(partial).name_hint == "result_rf"


def test_cuda_takes_formulas_whole():
    formula, _ = FORMULAS["three times"]
    whole = with_whole_formulas(kernel(formula))
    assert "T.Let" not in whole.script()
    tvm.ir.assert_structural_equal(whole, kernel(formula, shared=False))
