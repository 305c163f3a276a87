"""Products by byte shuffles equal their references: registers of 32 and 64 bytes; samples of the ops also use 16."""

from dataclasses import replace

import pytest
import torch
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.lib.convolution_shape import output_extents
from fqt_deploy.ops.lib.packed_words import pack_last_axis, to_panels
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cpu.products.byte_shuffle.convolution import ShuffleConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.input_gradient import ShuffleInputGradient
from fqt_deploy.targets.cpu.products.byte_shuffle.level_convolution import ShuffleLevelConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.nibble_table import lookups_of_a_byte, lookups_of_a_half
from fqt_deploy.targets.cpu.products.byte_shuffle.weight_gradient import ShuffleWeightGradient
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import in_form

FORMS = {
    "binary_conv2d": ShuffleConvolution(),
    "bitplane_conv2d_input_grad": ShuffleInputGradient(),
    "level_conv2d": ShuffleLevelConvolution(),
    "bitplane_weight_grad": ShuffleWeightGradient(),
}
LEVELS = ("x86-64-v3", "x86-64-v4")


def target_of(level):
    try:
        return make_target("cpu", CpuOptions(mcpu=level))
    except FqtError:
        pytest.skip("this machine cannot run it")


def check(name, arguments, target):
    function = in_form(FORMS[name], name, arguments, target.features)
    assert function is not None
    kernel = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target.tvm_target)
    expected = FQT_OPS[name](*arguments).reference()
    found = torch.full_like(expected, 77)
    operands = [a for a in arguments if isinstance(a, torch.Tensor)]
    kernel["main"](*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*operands, found)))
    assert torch.equal(found, expected)


def random_bits(*shape):
    return torch.randint(0, 2, shape) > 0


def forward_arguments(samples, hw, channels, outputs, kernel, stride, padding):
    x = pack_last_axis(random_bits(samples, *hw, channels))
    w = to_panels(pack_last_axis(random_bits(outputs, *kernel, channels)).flatten(1))
    return x, w, channels, outputs, kernel, stride, padding


def level_arguments(samples, hw, channels, outputs, kernel, stride, padding, bits, signed):
    planes = pack_last_axis(random_bits(samples, *hw, bits, channels))
    w = to_panels(pack_last_axis(random_bits(outputs, *kernel, channels)).flatten(1))
    return planes, w, channels, outputs, kernel, stride, padding, signed


def input_grad_arguments(samples, hw, channels, outputs, kernel, stride, padding, bits):
    extents = output_extents(hw, kernel, stride, padding)
    planes = pack_last_axis(random_bits(samples, *extents, bits, outputs))
    w = to_panels(pack_last_axis(random_bits(channels, *kernel, outputs)).flatten(1))
    return planes, w, channels, outputs, hw, kernel, stride, padding


def weight_grad_arguments(words, bits, kept, channels, kernel):
    taps = kernel[0] * kernel[1]
    planes = pack_last_axis(random_bits(words, bits, kept, 32))[..., 0].contiguous()
    masks = random_bits(taps, 1, words * 32)
    values = random_bits(taps, channels, words * 32) & masks
    rows = torch.cat([values.flatten(0, 1), masks[:, 0]])
    return planes, to_panels(pack_last_axis(rows)), channels, kernel


CASES = {
    "words in several parts": ("binary_conv2d", forward_arguments(2, [4, 4], 32 * 12, 64, [3, 3], [1, 1], [1, 1])),
    "one word too many": ("binary_conv2d", forward_arguments(1, [2, 6], 32 * 11, 64, [1, 3], [1, 1], [0, 1])),
    "a product of matrices": ("binary_conv2d", forward_arguments(1, [1, 126], 96, 128, [1, 1], [1, 1], [0, 0])),
    "jobs of which the last is short": (
        "binary_conv2d", forward_arguments(5, [1, 37], 96, 128, [1, 1], [1, 1], [0, 0])
    ),
    "gradients, jobs of which the last is short": (
        "bitplane_conv2d_input_grad", input_grad_arguments(10, [1, 37], 64, 96, [1, 1], [1, 1], [0, 0], 3)
    ),
    "levels, jobs of which the last is short": (
        "level_conv2d", level_arguments(1, [1, 66], 64, 64, [1, 1], [1, 1], [0, 0], 4, True)
    ),
    "levels, one short job": ("level_conv2d", level_arguments(1, [1, 37], 64, 64, [1, 1], [1, 1], [0, 0], 4, True)),
    "rows of odd length": ("binary_conv2d", forward_arguments(3, [7, 7], 64, 192, [3, 3], [2, 2], [1, 1])),
    "one position": ("binary_conv2d", forward_arguments(5, [2, 2], 64, 16, [2, 2], [1, 1], [0, 0])),
    "more than 16 bits hold": (
        "bitplane_conv2d_input_grad", input_grad_arguments(1, [1, 8], 16, 32 * 138, [1, 1], [1, 1], [0, 0], 4)
    ),
    "tap by tap": (
        "bitplane_conv2d_input_grad", input_grad_arguments(2, [2, 2], 64, 32 * 14, [3, 3], [1, 1], [1, 1], 4)
    ),
    "between strides": (
        "bitplane_conv2d_input_grad", input_grad_arguments(3, [6, 6], 192, 64, [3, 3], [2, 2], [1, 1], 3)
    ),
    "a border around one tap": (
        "bitplane_conv2d_input_grad", input_grad_arguments(3, [5, 6], 32, 32, [1, 1], [1, 1], [1, 2], 2)
    ),
    "levels, rows of odd length": (
        "level_conv2d", level_arguments(3, [7, 7], 33, 48, [3, 3], [2, 2], [1, 1], 4, True)
    ),
    "levels, several bands": ("level_conv2d", level_arguments(2, [16, 32], 96, 64, [3, 3], [1, 1], [1, 1], 4, False)),
    "levels, a product of matrices": (
        "level_conv2d", level_arguments(1, [1, 126], 96, 128, [1, 1], [1, 1], [0, 0], 4, True)
    ),
    "levels, more than 16 bits hold": (
        "level_conv2d", level_arguments(1, [1, 8], 32 * 138, 16, [1, 1], [1, 1], [0, 0], 4, True)
    ),
    "levels, two digits": ("level_conv2d", level_arguments(2, [4, 4], 70, 32, [3, 3], [1, 1], [1, 1], 8, True)),
    "levels, two digits of unsigned codes": (
        "level_conv2d", level_arguments(1, [1, 10], 64, 256, [1, 1], [1, 1], [0, 0], 8, False)
    ),
    "levels, a border wider than the kernel reaches": (
        "level_conv2d", level_arguments(2, [3, 3], 32, 32, [3, 3], [1, 1], [2, 2], 3, True)
    ),
    "levels of one bit": ("level_conv2d", level_arguments(2, [4, 6], 64, 64, [3, 3], [1, 1], [1, 1], 1, False)),
    "positions in pieces": ("bitplane_weight_grad", weight_grad_arguments(300, 4, 8, 48, [3, 3])),
    "several groups": ("bitplane_weight_grad", weight_grad_arguments(17, 4, 64, 64, [3, 3])),
}  # fmt: skip


@pytest.mark.quick(per=lambda case: (CASES[case["case"]][0], case["level"]))
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_every_way_of_cutting(case, level):
    name, arguments = CASES[case]
    check(name, arguments, target_of(level))


@pytest.mark.thorough
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_convolution(data):
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    stride = [data.draw(st.integers(1, 2)) for _ in range(2)]
    hw = [data.draw(st.integers(k, 6)) for k in kernel]
    channels, outputs = data.draw(st.integers(1, 70)), 16 * data.draw(st.integers(1, 6))
    samples = data.draw(st.integers(1, 4))
    target = target_of("x86-64-v3")
    check("binary_conv2d", forward_arguments(samples, hw, channels, outputs, kernel, stride, padding), target)
    gradient = input_grad_arguments(
        samples, hw, outputs, channels, kernel, stride, padding, data.draw(st.integers(1, 4))
    )
    check("bitplane_conv2d_input_grad", gradient, target)
    levels = data.draw(st.sampled_from([1, 2, 3, 4, 8])), data.draw(st.booleans())
    check("level_conv2d", level_arguments(samples, hw, channels, outputs, kernel, stride, padding, *levels), target)


@pytest.mark.thorough
@settings(max_examples=4, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 24), st.integers(1, 70), st.integers(1, 3))
@example(1, 4, 3, 1, 1)
def test_any_weight_gradient(words, bits, kept, channels, size):
    check(
        "bitplane_weight_grad", weight_grad_arguments(words, bits, kept, channels, [size, size]), target_of("x86-64-v3")
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_largest_sums_fit(bits):
    largest = 4 * (2**bits - 1)
    assert lookups_of_a_byte(bits) * largest <= 255
    assert 8 % lookups_of_a_byte(bits) == 0
    assert lookups_of_a_half(bits) * largest <= 65535


@pytest.mark.quick(only=("4",))
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_the_largest_sums_of_levels_fit(bits):
    """All codes are the largest ones, all weights ones, over more words than 16 bits hold the sums of."""
    planes, weight, *rest = level_arguments(1, [2, 2], 32 * 140, 32, [2, 2], [1, 1], [0, 0], bits, True)
    arguments = (torch.full_like(planes, -1), torch.full_like(weight, -1), *rest)
    check("level_conv2d", arguments, target_of("x86-64-v3"))


@pytest.mark.parametrize("lack", [{"has_byte_shuffle": False}, {"has_vpopcnt": True}])
def test_only_where_nothing_else_is_faster(lack):
    features = replace(make_target("cpu").features, has_byte_shuffle=True, has_vpopcnt=False)
    for name, arguments in CASES.values():
        assert in_form(FORMS[name], name, arguments, replace(features, **lack)) is None


def test_sums_stay_in_registers():
    """No load or store of the stack in the loop that shuffles a word for one, two or four registers, for gradients."""
    target = target_of("x86-64-v3")
    for case in ("tap by tap", "several groups"):
        name, arguments = CASES[case]
        function = in_form(FORMS[name], name, arguments, target.features).with_attr("tirx.is_scheduled", True)
        code = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target).mod.inspect_source("asm")
        loops = [block for block in code.split("\n.LBB") if block.count("\tvpshufb") in (8, 16, 32)]
        assert loops
        assert all("(%rsp)" not in loop.split("\tj")[0] for loop in loops)
