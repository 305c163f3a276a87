"""Products in tile registers: compiled on every machine, run where there are some by the tests of processor levels."""

import re
from dataclasses import replace

import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.tile_registers.byte_convolution_cut import Cut, cut_convolution
from fqt_deploy.targets.cpu.products.tile_registers.convolution import TileConvolution
from fqt_deploy.targets.cpu.products.tile_registers.input_gradient import TileInputGradient
from fqt_deploy.targets.cpu.products.tile_registers.level_convolution import TileLevelConvolution
from fqt_deploy.targets.cpu.products.tile_registers.matrix_product import ROWS, cut_matrix
from fqt_deploy.targets.cpu.products.tile_registers.registers import SIGNED_ROWS, UNSIGNED, UNSIGNED_ROWS
from fqt_deploy.targets.cpu.products.tile_registers.weight_gradient import TileWeightGradient
from fqt_deploy.targets.products import BitConvolution
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import in_form
from tests.targets.test_byte_convolution import LAYERS, case

FORMS = {
    "binary_conv2d": (TileConvolution(), SIGNED_ROWS),
    "bitplane_conv2d_input_grad": (TileInputGradient(), UNSIGNED_ROWS),
    "bitplane_weight_grad": (TileWeightGradient(), UNSIGNED),
    "level_conv2d": (TileLevelConvolution(), "tdpb"),
    "level_weight_grad": (TileWeightGradient(), UNSIGNED),
}

MANY_POSITIONS = (
    torch.zeros(2, 16, 16, 2, dtype=torch.int32), torch.zeros(4, 18, 16, dtype=torch.int32),
    64, 64, [3, 3], [1, 1], [1, 1],
)  # fmt: skip
"""So many that each job expands the weights for itself; with the samples of the ops all share what is expanded once."""


@pytest.mark.parametrize("name", FORMS)
def test_tiles_are_loaded_multiplied_and_left_empty(name):
    """Without a spill: each tile of sums is stored where its kernel says so, and nothing else is."""
    if not make_target("cpu").features.is_x86:
        pytest.skip("LLVM for this machine does not make x86 code")
    features = replace(make_target("cpu").features, has_amx=True)
    target = tvm.target.Target({"kind": "llvm", "mcpu": "sapphirerapids"})
    samples = [*FQT_OPS[name].sample_inputs(), *([MANY_POSITIONS] if name == "binary_conv2d" else [])]
    functions = [in_form(FORMS[name][0], name, arguments, features) for arguments in samples]
    taken = [f for f in functions if f is not None]
    assert taken
    for function in taken:
        module = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target)
        code = module.mod.inspect_source("asm")
        assert FORMS[name][1] in code
        products = len(re.findall(r"\ttdpb", code))
        assert products % 4 == 0
        assert len(re.findall(r"\ttileloadd", code)) <= products + products // 4 + 4 * code.count("\ttilestored")
        assert code.count("\tldtilecfg") == code.count("\ttilerelease") > 0


@pytest.mark.parametrize("name", FORMS)
def test_only_where_there_are_tile_registers(name):
    features = replace(make_target("cpu").features, has_amx=False)
    assert all(
        in_form(FORMS[name][0], name, arguments, features) is None for arguments in FQT_OPS[name].sample_inputs()
    )


def convolution(samples, extent, depth, columns, kernel=3, stride=1, padding=1):
    outputs = (extent + 2 * padding - kernel) // stride + 1
    product = BitConvolution(
        samples=samples,
        image=(extent, extent),
        output=(outputs, outputs),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(padding, padding),
        depth=depth,
        columns=columns,
        dtype="int16",
    )
    return TileConvolution().expanded(product)


CUTS = {
    "rows of an image": (convolution(128, 32, 64, 64), (False, 16, 2)),
    "fourteen positions of a row": (convolution(3, 14, 64, 64), (False, 14, 2)),
    "one position of sixteen samples": (convolution(32, 8, 64, 64), (True, 16, 2)),
    "as many samples as are kept": (convolution(16, 4, 512, 512), (True, 16, 1)),
    "rows of eight, samples too few": (convolution(8, 8, 64, 64), (False, 8, 2)),
    "tiles almost empty": (convolution(8, 4, 64, 64), None),
    "one tap": (convolution(128, 32, 64, 64, kernel=1, padding=0), None),
    "half a row of bytes": (convolution(128, 32, 32, 64), None),
    "one panel of columns": (convolution(128, 32, 64, 16), None),
}


def test_a_product_of_matrices_is_cut_where_the_fewest_bytes_are_made():
    """Rows take longer than columns: they are made once, as long as a job's columns fit the cache."""
    few_rows = cut_matrix(convolution(392, 1, 384, 384, kernel=1, padding=0))
    assert (few_rows.bands, few_rows.parts) == (8, 1)
    wide = cut_matrix(convolution(2048, 1, 768, 3072, kernel=1, padding=0))
    assert (wide.bands, wide.parts) == (3, 3)
    assert cut_matrix(convolution(100, 1, 384, 384, kernel=1, padding=0)) is None
    assert cut_matrix(convolution(8, 8, 64, 64)) is None


@pytest.mark.parametrize("rows", [160, 161, 191, 192, 1576])
def test_every_row_is_in_one_pair_of_one_job(rows):
    cut = cut_matrix(convolution(rows, 1, 64, 64, kernel=1, padding=0))
    pairs = [
        int(cut.first_pair(band * cut.parts)) + q
        for band in range(cut.bands)
        for q in range(int(cut.pair_count(band * cut.parts)))
    ]
    assert pairs == list(range(cut.pairs))
    assert all(0 <= int(cut.start(pair)) <= rows - ROWS for pair in pairs)
    written = [r for pair in pairs for r in range(max(pair * ROWS, int(cut.start(pair))), int(cut.start(pair)) + ROWS)]
    assert written == list(range(rows))


@pytest.mark.parametrize("case", CUTS)
def test_tiles_are_cut_along_what_fills_them(case):
    c, expected = CUTS[case]
    cut = cut_convolution(c)
    assert (None if cut is None else (cut.along_samples, cut.rows, cut.row_tiles)) == expected
    if isinstance(cut, Cut):
        assert c.product.samples % cut.group == 0
        assert c.output_hw[0] % cut.band == 0
        assert c.product.panels % (4 // cut.row_tiles * cut.blocks) == 0


LAYERS_OF_8_BITS = {
    # samples, image, depth, columns, kernel, stride, padding
    "a product of matrices": (1, (1, 197), 64, 64, (1, 1), (1, 1), (0, 0)),
    "a product of matrices in several parts": (2, (9, 20), 128, 96, (1, 1), (1, 1), (0, 0)),
    "rows of an image, and its borders": (3, (14, 14), 64, 64, (3, 3), (1, 1), (1, 1)),
    "positions of samples, with a stride": (16, (8, 8), 64, 64, (3, 3), (2, 2), (1, 1)),
    "weights of each job": (2, (32, 32), 64, 64, (3, 3), (1, 1), (1, 1)),
    "borders of two taps": (32, (7, 7), 64, 64, (5, 5), (1, 1), (2, 2)),
}


@pytest.mark.parametrize("layer", LAYERS_OF_8_BITS)
@pytest.mark.parametrize("planes", [1, 4])
def test_levels_of_8_bits_with_signs_are_codes_less_what_constants_say(layer, planes, monkeypatch):
    """They do not fit a byte; the largest codes and levels come first, then random ones."""
    target = make_target("cpu")
    if not target.features.has_amx:
        pytest.skip("this machine has no tile registers")
    monkeypatch.setitem(LAYERS, layer, LAYERS_OF_8_BITS[layer])
    for largest in (True, False):
        arguments = case("level_conv2d", layer, 8, planes, signed=True, largest=largest)
        kernel = in_form(TileLevelConvolution(), "level_conv2d", arguments, target.features)
        module = tvm.compile(tvm.IRModule({"main": kernel.with_attr("tirx.is_scheduled", True)}), target.tvm_target)
        expected = FQT_OPS["level_conv2d"](*arguments).reference()
        found = torch.full_like(expected, 77)
        module["main"](*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*arguments[:2], found)))
        assert torch.equal(found, expected)
