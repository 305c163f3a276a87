"""Products by table equal their references where a processor has byte permutations of whole registers."""

import pytest
import torch
import tvm

from fqt_deploy.ops.lib import levels
from fqt_deploy.ops.lib.convolution_shape import output_extents
from fqt_deploy.ops.lib.packed_words import pack_last_axis, to_panels
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.table_lookup.input_gradient import TableInputGradient
from fqt_deploy.targets.cpu.products.table_lookup.level_convolution import ROWS, TableLevelConvolution
from fqt_deploy.targets.cpu.products.table_lookup.level_convolution_cut import BAND_BYTES, JOBS, TabledConvolution
from fqt_deploy.targets.cpu.products.table_lookup.lookup import has_instructions
from fqt_deploy.targets.cpu.products.table_lookup.weight_gradient import TableWeightGradient
from fqt_deploy.targets.products import in_short_rows, product_of
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import in_form, op_function

FORMS = {
    "level_conv2d": TableLevelConvolution(),
    "bitplane_conv2d_input_grad": TableInputGradient(),
    "level_weight_grad": TableWeightGradient(),
}


def check(name, arguments):
    target = make_target("cpu")
    if not has_instructions(target.features):
        pytest.skip("this machine has no byte permutation")
    function = in_form(FORMS[name], name, arguments, target.features)
    assert function is not None
    kernel = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target.tvm_target)
    expected = FQT_OPS[name](*arguments).reference()
    found = torch.full_like(expected, 77)
    operands = [a for a in arguments if isinstance(a, torch.Tensor)]
    kernel["main"](*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*operands, found)))
    assert torch.equal(found, expected)


def random_bits(*shape):
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)) > 0


def convolution(samples, hw, channels, outputs, kernel, stride, padding, bits, signed):
    planes = pack_last_axis(random_bits(samples, *hw, bits, channels))
    weight = to_panels(pack_last_axis(random_bits(outputs, *kernel, channels)).flatten(1))
    return planes, weight, channels, outputs, kernel, stride, padding, signed


CONVOLUTIONS = {
    "part of a row": (2, [5, 16], 64, 64, [3, 3], [1, 1], [1, 1], 4, True),
    "a row of seven": (2, [7, 7], 33, 48, [3, 3], [1, 1], [1, 1], 3, True),
    "a row that no tile divides": (1, [4, 11], 40, 32, [3, 3], [1, 1], [1, 1], 2, True),
    "whole rows, one sample": (1, [4, 4], 96, 64, [3, 3], [1, 1], [1, 1], 2, False),
    "whole samples": (6, [2, 2], 70, 48, [3, 3], [1, 1], [1, 1], 4, True),
    "samples of one position": (3, [1, 1], 32, 64, [3, 3], [1, 1], [1, 1], 2, True),
    "strides, a kernel of two sizes": (3, [9, 7], 64, 64, [5, 3], [2, 1], [2, 1], 4, False),
    "positions between strides": (2, [8, 8], 64, 1024, [2, 2], [3, 3], [0, 0], 3, True),
    "no padding": (2, [6, 6], 64, 32, [3, 3], [1, 1], [0, 0], 4, True),
    "a border wider than the kernel reaches": (2, [3, 3], 32, 32, [3, 3], [1, 1], [2, 2], 4, True),
    "a product of matrices": (1, [1, 9], 70, 256, [1, 1], [1, 1], [0, 0], 4, True),
    "a product of matrices in rows of five": (10, [1, 37], 64, 256, [1, 1], [1, 1], [0, 0], 4, True),
    "a product of matrices in rows of seven": (2, [3, 7], 70, 256, [1, 1], [1, 1], [0, 0], 8, True),
    "two digits": (2, [4, 4], 70, 32, [3, 3], [1, 1], [1, 1], 8, True),
    "two digits of unsigned codes": (1, [1, 10], 64, 256, [1, 1], [1, 1], [0, 0], 8, False),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_of_levels(case):
    check("level_conv2d", convolution(*CONVOLUTIONS[case]))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_largest_sums_of_levels_fit(bits):
    """All codes are the largest ones, all weights ones."""
    planes, weight, *rest = convolution(1, [4, 4], 128, 64, [3, 3], [1, 1], [1, 1], bits, True)
    arguments = (torch.full_like(planes, -1), torch.full_like(weight, -1), *rest)
    check("level_conv2d", arguments)


def test_where_tables_are_used_seldom_bits_are_counted():
    features = make_target("cpu").features
    seldom = convolution(2, [4, 4], 64, 32, [1, 1], [1, 1], [0, 0], 4, True)
    single = convolution(2, [4, 4], 64, 64, [3, 3], [1, 1], [1, 1], 1, True)
    partial = convolution(2, [4, 4], 64, 40, [3, 3], [1, 1], [1, 1], 4, True)
    for arguments in (seldom, single, partial):
        assert in_form(FORMS["level_conv2d"], "level_conv2d", arguments, features) is None


def input_gradient(samples, hw, channels, outputs, kernel, stride, padding, bits):
    extents = output_extents(hw, kernel, stride, padding)
    planes = pack_last_axis(random_bits(samples, *extents, bits, outputs))
    weight = to_panels(pack_last_axis(random_bits(channels, *kernel, outputs)).flatten(1))
    return planes, weight, channels, outputs, hw, kernel, stride, padding


MATRICES = ([1, 1], [1, 1], [0, 0], 4, True)
INPUT_GRADIENTS = {
    "four phases": (2, [8, 8], 64, 64, [3, 3], [2, 2], [1, 1], 4),
    "four phases of part of a row": (1, [4, 32], 64, 96, [3, 3], [2, 2], [1, 1], 3),
    "phases of columns alone": (2, [7, 8], 64, 64, [3, 3], [2, 2], [1, 1], 4),
    "phases of rows alone": (2, [6, 7], 64, 33, [3, 3], [2, 2], [1, 1], 4),
    "one stride": (2, [6, 8], 64, 64, [3, 2], [1, 2], [1, 0], 3),
    "phases that no tap reads": (2, [6, 6], 128, 64, [2, 2], [3, 3], [0, 0], 4),
    "a wide border": (1, [4, 4], 64, 64, [3, 3], [2, 2], [2, 2], 4),
    "a product of matrices in rows of five": (10, [1, 37], 256, 64, [1, 1], [1, 1], [0, 0], 4),
    "a product of matrices in rows of eight": (16, [1, 12], 256, 33, [1, 1], [1, 1], [0, 0], 3),
}


@pytest.mark.parametrize("case", INPUT_GRADIENTS)
def test_input_gradients_between_strides(case):
    check("bitplane_conv2d_input_grad", input_gradient(*INPUT_GRADIENTS[case]))


def test_products_of_matrices_are_work_for_many_threads():
    """However positions are divided among images, and tables of all of them together would not fit a cache."""
    for arguments in (convolution(1, [1, 1184], 384, 512, *MATRICES), convolution(32, [1, 37], 384, 512, *MATRICES)):
        product = in_short_rows(product_of(op_function("level_conv2d", arguments)), ROWS)
        cut = TabledConvolution(product, ROWS, 2)
        assert cut.jobs >= JOBS
        assert cut.rows * cut.tiles * cut.jobs == 1184
        assert cut.height * cut.width * product.words * cut.word_bytes <= BAND_BYTES


def weight_gradient(words, width, kept, channels, kernel, bits, signed):
    taps, filled = kernel[0] * kernel[1], levels.plane_channels(channels)
    planes = pack_last_axis(random_bits(words, width, kept, 32))[..., 0].contiguous()
    masks = random_bits(taps, 1, 1, words * 32)
    rows = torch.cat([(random_bits(taps, bits, filled, words * 32) & masks).flatten(0, 2), masks[:, 0, 0]])
    return planes, to_panels(pack_last_axis(rows)), channels, kernel, bits, signed


WEIGHT_GRADIENTS = {
    "two planes": (19, 4, 16, 64, [3, 3], 2, True),
    "bits, in several runs": (33, 3, 8, 64, [3, 3], 2, False),
    "three planes, one channel": (1, 3, 1, 64, [3, 3], 3, True),
}


@pytest.mark.parametrize("case", WEIGHT_GRADIENTS)
def test_weight_gradients_of_levels(case):
    check("level_weight_grad", weight_gradient(*WEIGHT_GRADIENTS[case]))
