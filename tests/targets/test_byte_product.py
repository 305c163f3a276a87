"""Weight gradients by bytes equal their references, whichever instruction multiplies the bytes."""

import re
from dataclasses import dataclass, replace

import pytest
import torch
import tvm
from tvm import tirx
from tvm.script import tirx as T

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.byte_product.multiplier import STEPS, ByteMultiplier, byte_multiplier
from fqt_deploy.targets.cpu.products.byte_product.weight_gradient import ByteCut, ByteWeightGradient, kernel_of
from fqt_deploy.targets.products import product_of
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import in_form, op_function
from tests.targets.test_table_lookup import weight_gradient

FORM = ByteWeightGradient()
VNNI = {"vector_bits": 512, "has_vnni": True, "has_amx": False}
PROCESSORS = {
    "znver4": (VNNI, "vpdpbusd", 16, "zmm"),
    "alderlake": ({"vector_bits": 256, "has_vnni": False, "has_dot_product": True}, "vpdpbusd", 8, "ymm"),
    "skylake-avx512": ({"vector_bits": 512, "has_vnni": False}, "vpmaddubsw", 16, "zmm"),
    "haswell": ({"vector_bits": 256, "has_vnni": False, "has_dot_product": False}, "vpmaddubsw", 8, "ymm"),
}
"""What is particular to processors, the instruction, how many of it a step has, and its registers."""


def x86_features(**particular):
    features = make_target("cpu").features
    if not features.is_x86:
        pytest.skip("LLVM for this machine does not make x86 code")
    return replace(features, **particular)


@dataclass(frozen=True)
class PlainMultiplier(ByteMultiplier):
    """The instructions that add to sums of 32 bits, spelled out: any machine can run them."""

    def add(self, total, unsigned, signed):
        lanes, product = self.lanes, total
        for byte in range(4):
            left = (unsigned >> tirx.Broadcast(T.int32(8 * byte), lanes)) & tirx.Broadcast(T.int32(255), lanes)
            moved = signed << tirx.Broadcast(T.int32(24 - 8 * byte), lanes)
            product = product + left * (moved >> tirx.Broadcast(T.int32(24), lanes))
        return product


CASES = {
    "one run": (5, 4, 16, 64, [3, 3], 4, True),
    "several runs, one tap a job": (300, 3, 8, 64, [3, 3], 4, True),
    "several runs, all taps in a job": (31, 4, 24, 256, [3, 3], 4, False),
    "one panel of each plane": (2, 2, 8, 32, [1, 2], 8, True),
    "one position's word, one tap": (1, 1, 8, 64, [1, 1], 8, False),
    "wide codes of the gradient": (3, 8, 8, 64, [3, 3], 4, True),
    "narrow codes": (3, 2, 16, 64, [3, 3], 4, True),
    "two digits of each code": (7, 8, 16, 64, [3, 3], 8, True),
    "two digits in several runs": (300, 8, 8, 64, [3, 3], 8, False),
    "many masks": (3, 4, 8, 32, [5, 5], 4, True),
}


@pytest.mark.quick(2)
@pytest.mark.parametrize("case", CASES)
def test_levels_times_codes(case):
    """In this machine's instruction, which on most of them sums halves."""
    features = make_target("cpu").features
    if byte_multiplier(features) is None:
        pytest.skip("this machine takes another form")
    check(weight_gradient(*CASES[case]), byte_multiplier(features))


@pytest.mark.quick(per="lanes")
@pytest.mark.parametrize(("lanes", "rows", "vectors"), [(16, 8, 2), (8, 4, 2), (4, 4, 4)])
@pytest.mark.parametrize("case", CASES)
def test_levels_times_codes_in_sums_of_32_bits(case, lanes, rows, vectors):
    check(weight_gradient(*CASES[case]), PlainMultiplier("none", lanes, sums_halves=False, rows=rows, vectors=vectors))


@pytest.mark.quick(3)
@pytest.mark.parametrize(("width", "bits"), [(4, 4), (7, 4), (4, 7), (8, 4), (4, 8), (7, 7), (7, 8), (8, 7), (8, 8)])
def test_the_largest_products_fit(width, bits):
    """All codes and levels are the largest ones, at all positions."""
    multiplier = byte_multiplier(make_target("cpu").features)
    digit = 4 if width == bits == 8 else width
    if multiplier is None or multiplier.steps(digit, bits, most=STEPS) == 0:
        pytest.skip("this machine takes another form")
    planes, positions, *rest = weight_gradient(40, width, 8, 32, [1, 1], bits, False)
    check((torch.full_like(planes, -1), torch.full_like(positions, -1), *rest), multiplier)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("other", range(1, 9))
def test_sums_of_halves_never_overflow(bits, other):
    multiplier = ByteMultiplier("none", 8, sums_halves=True, rows=4, vectors=2)
    steps, pair = multiplier.steps(bits, other, most=10**6), 2 * (2**bits - 1) * (2**other - 1)
    assert steps * pair <= 32767 < (steps + 1) * pair


def check(arguments, multiplier):
    product = product_of(op_function("level_weight_grad", arguments))
    function = kernel_of(ByteCut(product, multiplier)).with_attr("tirx.is_scheduled", True)
    kernel = tvm.compile(tvm.IRModule({"main": function}), make_target("cpu").tvm_target)
    expected = FQT_OPS["level_weight_grad"](*arguments).reference()
    found = torch.full_like(expected, 77)
    kernel["main"](*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*arguments[:2], found)))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_sums_stay_in_registers(processor):
    """Compiled on every machine: a loop of all products of a step, and no load or store of the stack in it."""
    particular, instruction, products, register = PROCESSORS[processor]
    features = x86_features(**particular)
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    function = in_form(FORM, "level_weight_grad", weight_gradient(*CASES["one run"]), features)
    module = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target)
    blocks = re.split(r"\n\.LBB", module.mod.inspect_source("asm"))
    loop = max(blocks, key=lambda block: block.count(instruction) / len(block.splitlines())).split("\tj")[0]
    assert loop.count(instruction) >= products
    assert not re.search(rf"{register}.*\(%rsp\)|\(%rsp\).*{register}", loop)


def test_only_where_other_forms_are_slower():
    features = x86_features(**VNNI)

    def taken(*arguments, **particular):
        return in_form(FORM, "level_weight_grad", weight_gradient(*arguments), replace(features, **particular))

    assert taken(2, 4, 8, 64, [3, 3], 4, True)
    assert not taken(2, 4, 8, 64, [3, 3], 3, True)  # tables
    assert not taken(2, 1, 8, 64, [3, 3], 4, True)  # popcounts
    assert not taken(2, 8, 8, 64, [3, 3], 1, True)  # signs
    assert not taken(2, 4, 12, 64, [3, 3], 4, True)  # channels that fill no tile
    assert taken(2, 8, 8, 64, [3, 3], 8, True)  # neither code fits a signed byte, its digits do
    assert taken(2, 8, 8, 64, [3, 3], 8, True, has_vnni=False)
    assert taken(2, 7, 8, 64, [3, 3], 8, True)
    assert not taken(2, 7, 8, 64, [3, 3], 8, True, has_vnni=False)  # two products do not fit 16 bits
    assert taken(2, 4, 12, 64, [3, 3], 4, True, vector_bits=256)
    for lack in ({"vector_bits": 128}, {"is_x86": False, "has_dot_product": False}):
        assert not taken(2, 4, 8, 64, [3, 3], 4, True, **lack)
