"""Weight gradients by bytes equal their references where a processor multiplies bytes in vector registers."""

import re
from dataclasses import replace

import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.byte_product.expansion import has_byte_products
from fqt_deploy.targets.cpu.products.byte_product.weight_gradient import ByteWeightGradient
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import in_form
from tests.targets.test_table_lookup import weight_gradient

FORM = ByteWeightGradient()


def features_with_bytes():
    features = make_target("cpu").features
    if not features.is_x86:
        pytest.skip("LLVM for this machine does not make x86 code")
    return replace(features, has_vnni=True, has_vbmi=True, has_bitalg=True, has_amx=False)


CASES = {
    "one run": (5, 4, 16, 64, [3, 3], 4, True),
    "several runs, one tap a job": (300, 3, 8, 64, [3, 3], 4, True),
    "several runs, all taps in a job": (31, 4, 24, 256, [3, 3], 4, False),
    "one panel of each plane": (2, 2, 8, 32, [1, 2], 8, True),
    "one position's word, one tap": (1, 1, 8, 64, [1, 1], 8, False),
    "wide codes of the gradient": (3, 8, 8, 64, [3, 3], 4, True),
    "narrow codes": (3, 2, 16, 64, [3, 3], 4, True),
    "many masks": (3, 4, 8, 32, [5, 5], 4, True),
}


@pytest.mark.parametrize("case", CASES)
def test_levels_times_codes(case):
    arguments = weight_gradient(*CASES[case])
    target = make_target("cpu")
    if not has_byte_products(target.features) or target.features.has_amx:
        pytest.skip("this machine takes another form")
    check(arguments, target)


def test_the_largest_products_fit():
    """All codes and levels are the largest ones, at all positions."""
    target = make_target("cpu")
    if not has_byte_products(target.features):
        pytest.skip("this machine takes another form")
    for width, bits in ((7, 8), (8, 7)):
        planes, positions, *rest = weight_gradient(4, width, 8, 32, [1, 1], bits, False)
        check((torch.full_like(planes, -1), torch.full_like(positions, -1), *rest), target)


def check(arguments, target):
    function = in_form(FORM, "level_weight_grad", arguments, target.features)
    assert function is not None
    kernel = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target.tvm_target)
    expected = FQT_OPS["level_weight_grad"](*arguments).reference()
    found = torch.full_like(expected, 77)
    kernel["main"](*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*arguments[:2], found)))
    assert torch.equal(found, expected)


def test_sums_stay_in_registers():
    """Compiled on every machine: sixteen products a step, and no load or store of the stack between them."""
    features = features_with_bytes()
    target = tvm.target.Target({"kind": "llvm", "mcpu": "znver4"})
    function = in_form(FORM, "level_weight_grad", weight_gradient(*CASES["one run"]), features)
    module = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target)
    blocks = re.split(r"\n\.LBB", module.mod.inspect_source("asm"))
    loop = max(blocks, key=lambda block: block.count("vpdpbusd") / len(block.splitlines()))
    assert loop.count("vpdpbusd") >= 16
    assert not re.search(r"zmm.*\(%rsp\)|\(%rsp\).*zmm", loop)


def test_only_where_other_forms_are_slower():
    features = features_with_bytes()

    def taken(*arguments):
        return in_form(FORM, "level_weight_grad", weight_gradient(*arguments), features) is not None

    assert taken(2, 4, 8, 64, [3, 3], 4, True)
    assert not taken(2, 4, 8, 64, [3, 3], 3, True)  # tables
    assert not taken(2, 1, 8, 64, [3, 3], 4, True)  # popcounts
    assert not taken(2, 8, 8, 64, [3, 3], 1, True)  # signs
    assert not taken(2, 4, 12, 64, [3, 3], 4, True)  # channels that fill no tile
    assert not taken(2, 8, 8, 64, [3, 3], 8, True)  # neither code fits a signed byte
    for lack in ({"has_vnni": False}, {"has_vbmi": False}, {"is_x86": False}):
        arguments = weight_gradient(*CASES["one run"])
        assert in_form(FORM, "level_weight_grad", arguments, replace(features, **lack)) is None
