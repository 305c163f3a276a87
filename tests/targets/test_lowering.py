"""Lowering for CPUs: counters of random numbers are vectors, indices stay what they were, and nothing changes a bit."""

import re

import numpy as np
import pytest
import torch
import tvm
from tvm import tirx

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops.lib.counter_random import uint32
from fqt_deploy.targets.cpu.lowering import PIPELINE, split_ramps
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function


def split(dtype, base):
    """What becomes of a ramp of sixteen numbers from an expression of the variable ``n`` on."""
    n = tirx.Var("n", dtype)
    ramp = tirx.Ramp(base(n), tirx.const(1, dtype), 16)
    return split_ramps(tirx.PrimFunc([n], tirx.Evaluate(ramp))).body.value


def test_counters_are_a_sum():
    value = split("uint32", lambda n: n * uint32(3))
    assert isinstance(value, tirx.Add)
    assert isinstance(value.a, tirx.Broadcast)
    assert isinstance(value.b, tirx.Ramp)
    assert int(value.b.base) == 0


@pytest.mark.parametrize(("dtype", "base"), [("int32", lambda n: n), ("uint32", lambda _: uint32(7))])
def test_indices_and_constants_stay(dtype, base):
    assert isinstance(split(dtype, base), tirx.Ramp)


def arguments():
    r = torch.Generator().manual_seed(0)
    gradient, key = torch.randn(3, 40, 64, generator=r), torch.tensor([3, -5], dtype=torch.int32)
    return gradient, None, torch.full((64,), -3.0), torch.full((64,), 1.3), key, 3


def compiled(pipeline):
    target = make_target("cpu")
    function = target.schedule(op_function("quantize_pack_channels", arguments()))
    return tvm.compile(tvm.IRModule({"main": function}), target.tvm_target, tir_pipeline=pipeline)


def result_of(library):
    tensors = [tvm.runtime.tensor(a.numpy()) for a in arguments() if isinstance(a, torch.Tensor)]
    result = tvm.runtime.empty((4, 3, 64), "int32")
    library["main"](*tensors, result)
    return result.numpy()


def test_the_target_lowers_by_it():
    assert make_target("cpu").lowering == PIPELINE


def test_random_bits_are_the_same():
    expected = torch.ops.fqt.quantize_pack_channels(*arguments()).numpy()
    for pipeline in ("default", PIPELINE):
        np.testing.assert_array_equal(result_of(compiled(pipeline)), expected)


def test_no_counter_is_inserted_by_itself():
    if not make_target("cpu").features.is_x86:
        pytest.skip("the instruction is x86's")
    assembly = {pipeline: compiled(pipeline).mod.inspect_source("asm") for pipeline in ("default", PIPELINE)}
    inserted = {pipeline: len(re.findall(r"v?pinsrd", text)) for pipeline, text in assembly.items()}
    assert inserted["default"] > 0
    assert inserted[PIPELINE] == 0
