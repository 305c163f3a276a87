"""The products of bits, as read from kernels: what each says of its layer, and what follows from it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx

from fqt_deploy.ops.lib.packed_words import panel_count, word_count
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cpu.products.bit_product_rule import FORMS
from fqt_deploy.targets.kernel_arguments import ARGUMENTS
from fqt_deploy.targets.products import (
    BIT_PRODUCTS,
    BitConvolution,
    BitInputGradient,
    BitWeightGradient,
    Convolution,
    convolution_of,
    in_short_rows,
    numbered_position,
    product_of,
)
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

SAMPLES = {
    f"{name}_{i}": (name, arguments)
    for name in BIT_PRODUCTS
    for i, arguments in enumerate(FQT_OPS[name].sample_inputs())
}
LAYER = {"image": (9, 7), "kernel": (3, 2), "stride": (2, 1), "padding": (1, 0)}
"""A layer whose axes differ in everything; its result is 5 by 6."""


def words(*shape):
    return torch.zeros(shape, dtype=torch.int32)


def test_a_convolution_is_read_from_its_kernel():
    function = op_function("binary_conv2d", (words(4, 9, 7, 2), words(2, 12, 16), 40, 20, [3, 2], [2, 1], [1, 0]))
    product = product_of(function)
    assert product == BitConvolution(**LAYER, samples=4, output=(5, 6), depth=40, columns=20, dtype="int16")
    assert (product.taps, product.words, product.contraction, product.panels) == (6, 2, 12, 2)
    assert (product.positions, product.has_whole_panels, product.is_pointwise) == (4 * 5 * 6, False, False)


def test_an_input_gradient_is_read_from_its_kernel():
    arguments = (words(4, 5, 6, 3, 1), words(3, 6, 16), 40, 20, [9, 7], [3, 2], [2, 1], [1, 0])
    product = product_of(op_function("bitplane_conv2d_input_grad", arguments))
    assert product == BitInputGradient(**LAYER, samples=4, output=(5, 6), depth=20, columns=40, bits=3)
    assert (product.border, product.words, product.contraction, product.panels) == ((1, 1), 1, 6, 3)


def test_a_weight_gradient_is_read_from_its_kernel():
    product = product_of(op_function("bitplane_weight_grad", (words(5, 4, 6), words(19, 5, 16), 48, [3, 2])))
    assert product == BitWeightGradient(words=5, bits=4, kept=6, channels=48, results=48, kernel=(3, 2))
    assert (product.rows, product.panels, product.channel_panels, product.mask_panels) == (294, 19, 18, 1)
    assert (product.tap_panels, product.has_whole_panels) == (3, True)


@pytest.mark.parametrize("sample", SAMPLES)
def test_sizes_are_those_of_the_operands(sample):
    """What is derived from the arguments is how the ops pack their operands."""
    name, arguments = SAMPLES[sample]
    product = product_of(op_function(name, arguments))
    left, right, *_ = arguments
    if isinstance(product, BitWeightGradient):
        assert (product.panels, product.words) == tuple(right.shape[:2])
        assert tuple(left.shape) == (product.words, product.bits, product.kept)
        return
    assert (product.panels, product.contraction) == tuple(right.shape[:2])
    assert (product.samples, product.words) == (left.shape[0], left.shape[-1])
    result = FQT_OPS[name](*arguments).reference()
    extents = product.output if isinstance(product, BitConvolution) else product.image
    assert tuple(result.shape) == (product.samples, *extents, product.columns)
    assert (product.panels, product.words) == (panel_count(product.columns), word_count(product.depth))


@pytest.mark.parametrize("name", BIT_PRODUCTS)
def test_nothing_is_read_where_something_was_inlined(name):
    function = op_function(name, next(iter(FQT_OPS[name].sample_inputs())))
    assert product_of(function.without_attr(ARGUMENTS)) is None


def test_other_convolutions_are_read_from_operands_and_arguments():
    expected = Convolution(**LAYER, samples=4, output=(5, 6))
    x, g, w = torch.zeros(4, 9, 7, 2), torch.zeros(4, 5, 6, 3), torch.zeros(3, 2, 3, 2)
    forward = op_function("conv2d", (x, w, [2, 1], [1, 0]))
    image, weight, result = forward.params
    assert convolution_of(forward, image=image, output=result, kernel=weight) == expected
    gradient = op_function("conv2d_weight_grad", (x, g, [3, 2], [2, 1], [1, 0]))
    assert convolution_of(gradient, image=gradient.params[0], output=gradient.params[1]) == expected
    packing = op_function("pack_positions", (words(4, 9, 7, 1), 2, [3, 2], [2, 1], [1, 0], [5, 6]))
    assert convolution_of(packing, image=packing.params[0]) == expected
    assert convolution_of(packing.without_attr(ARGUMENTS), image=packing.params[0]) is None


def test_gradients_lie_a_stride_apart():
    product = BitInputGradient(**LAYER, samples=1, output=(5, 6), depth=32, columns=16, bits=1)
    found = [at for at in range(-2, 12) if bool(product.has_gradient(tirx.const(at, "int32"), tirx.const(0, "int32")))]
    assert found == [0, 2, 4, 6, 8]
    assert not bool(product.has_gradient(tirx.const(0, "int32"), tirx.const(6, "int32")))


def test_positions_are_numbered_row_by_row():
    assert [numbered_position(n, (2, 3)) for n in (0, 2, 3, 7)] == [(0, 0, 0), (0, 0, 2), (0, 1, 0), (1, 0, 1)]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 8))
def test_a_product_of_matrices_may_be_one_image_of_short_rows(samples, height, width, most):
    extents = {"image": (height, width), "output": (height, width)}
    plain = {"stride": (1, 1), "padding": (0, 0), "depth": 32, "columns": 16, "bits": 1, **extents}
    product = BitInputGradient(kernel=(1, 1), samples=samples, **plain)
    found = in_short_rows(product, most)
    assert found.positions == product.positions
    assert found.samples == 1
    assert found.image == found.output
    assert found.image[1] <= most
    larger = range(found.image[1] + 1, most + 1)
    assert all(product.positions % rows for rows in larger)
    assert in_short_rows(replace(product, stride=(2, 1)), most).samples == samples


def test_every_form_of_a_product_has_a_name_of_its_own():
    """Tuning logs tell them apart by it."""
    for name, forms in FORMS.items():
        names = [form.name for form in forms]
        assert len(set(names)) == len(names), name
    assert set(FORMS) == set(BIT_PRODUCTS)


TAKEN = {
    # processor: forms of the products, of codes of four bits; then with activations of four bits
    "x86-64-v2": ("byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-shuffle"),
    "x86-64-v3": ("byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-product"),
    "alderlake": ("byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-product"),
    "cascadelake": ("byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-product"),
    "znver4": ("popcount", "table-lookup", "table-lookup", "table-lookup", "byte-product"),
    "sapphirerapids": ("tile-registers", "tile-registers", "tile-registers", "tile-registers", "tile-registers"),
}
SIZED = {
    "binary_conv2d": (words(32, 8, 8, 2), words(8, 18, 16), 64, 128, [3, 3], [1, 1], [1, 1]),
    "bitplane_conv2d_input_grad": (
        words(32, 8, 8, 4, 4), words(4, 36, 16), 64, 128, [8, 8], [3, 3], [1, 1], [1, 1],
    ),
    "bitplane_weight_grad": (words(64, 4, 32), words(37, 64, 16), 64, [3, 3]),
    "level_conv2d": (words(32, 8, 8, 4, 2), words(8, 18, 16), 64, 128, [3, 3], [1, 1], [1, 1], True),
    "level_weight_grad": (words(64, 4, 32), words(145, 64, 16), 64, [3, 3], 4, True),
}  # fmt: skip


@pytest.mark.parametrize("processor", TAKEN)
def test_each_processor_takes_the_form_that_its_instructions_are_for(processor, monkeypatch):
    monkeypatch.setattr("fqt_deploy.targets.cpu.features._missing_here", lambda names, toolchain: [])
    target = make_target("cpu", CpuOptions(mcpu=processor))
    found = []
    for name, arguments in SIZED.items():
        rule, choice = target.tunable_rule(op_function(name, arguments))
        assert name in rule.ops
        found.append(choice.form)
    assert tuple(found) == TAKEN[processor]


def test_arm_counts_signs_and_shuffles_codes():
    target = make_target("rpi5")
    found = [target.tunable_rule(op_function(name, arguments))[1].form for name, arguments in SIZED.items()]
    assert found == ["popcount", "byte-shuffle", "byte-shuffle", "byte-shuffle", "byte-product"]
