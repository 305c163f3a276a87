"""Tuning: every tile gives the reference's numbers, the fastest is kept, and nothing is measured twice."""

import dataclasses

import numpy as np
import pytest
import torch
import tvm
from tvm import tirx

from fqt_deploy.codegen import tune_tiles as tuning
from fqt_deploy.codegen.build import build_functions
from fqt_deploy.codegen.to_relax import RelaxProgram
from fqt_deploy.codegen.tune_tiles import check_can_tune, tune_tiles
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.products.bit_product_rule import BitProductRule
from fqt_deploy.targets.cpu.products.byte_shuffle.convolution import ShuffleConvolution
from fqt_deploy.targets.cpu.products.byte_shuffle.input_gradient import ShuffleInputGradient
from fqt_deploy.targets.cpu.products.popcount.convolution import PopcountConvolution
from fqt_deploy.targets.products import product_of
from fqt_deploy.targets.registry import make_target
from fqt_deploy.targets.tuning_log import kernel_signature
from tests.targets.op_kernel import op_function

CHANNELS, OUTPUTS, SIDE = 96, 128, 6
FORWARD = ("binary_conv2d", (2, SIDE, SIDE, 3), (8, 27, 16), [CHANNELS, OUTPUTS, [3, 3], [1, 1], [1, 1]])
BACKWARD = (
    "bitplane_conv2d_input_grad", (2, SIDE, SIDE, 3, 4), (6, 36, 16),
    [CHANNELS, OUTPUTS, [SIDE, SIDE], [3, 3], [1, 1], [1, 1]],
)  # fmt: skip
FORMS = ((PopcountConvolution(), FORWARD), (ShuffleConvolution(), FORWARD), (ShuffleInputGradient(), BACKWARD))


def kernel(case):
    name, *shapes, arguments = case
    return op_function(name, (*(torch.empty(shape, dtype=torch.int32) for shape in shapes), *arguments))


def program(*kernels):
    module = tvm.IRModule({f"kernel{i}": k for i, k in enumerate(kernels)})
    return RelaxProgram(module, (), (), None, (), {})


@pytest.fixture
def target():
    """This machine, as if it had a byte shuffle and no vector popcount."""
    found = make_target("cpu")
    if not found.features.is_x86:
        pytest.skip("byte shuffles of forward are x86's")
    features = dataclasses.replace(
        found.features, has_byte_shuffle=True, has_vpopcnt=False, has_vbmi=False, has_amx=False
    )
    return dataclasses.replace(found, features=features, tuned={})


@pytest.mark.quick
@pytest.mark.parametrize(("form", "case"), FORMS)
def test_every_tile_gives_the_reference(form, case, target):
    product = product_of(kernel(case))
    tiles = form.tiles(product, target.features)
    assert len(tiles) > 2
    name, *shapes, arguments = case
    r = np.random.default_rng(0)
    operands = [r.integers(-(2**31), 2**31, shape, dtype=np.int32) for shape in shapes]
    expected = FQT_OPS[name](*map(torch.from_numpy, operands), *arguments).reference().numpy()
    library = build_functions(
        {f"tile{i}": form.kernel(product, tile, target.features) for i, tile in enumerate(tiles)}, target.tvm_target
    )
    for i in range(len(tiles)):
        result = tvm.runtime.tensor(np.full_like(expected, -1))
        library[f"tile{i}"](*map(tvm.runtime.tensor, operands), result)
        np.testing.assert_array_equal(result.numpy(), expected)


def test_the_default_tile_is_the_first(target):
    rule = BitProductRule()
    for case in (FORWARD, BACKWARD):
        function = kernel(case)
        first = rule.choice(function, target.features).tiles[0]
        default, explicit = (rule.apply(function, target.features, tile) for tile in (None, first))
        tvm.ir.assert_structural_equal(default, explicit)


def test_the_fastest_tile_is_kept_and_used(target, monkeypatch):
    times = {}

    def measured(candidates, _target):
        for place, tile in enumerate(candidates):
            times[tile] = 1.0 / (1 + place)  # the last is the fastest
        return {tile: times[tile] for tile in candidates}

    monkeypatch.setattr(tuning, "_measure", measured)
    function = kernel(FORWARD)
    (tile,) = tune_tiles(program(function, function), target, 2, lambda _: None)
    rule = BitProductRule()
    assert tile.tile == rule.choice(function, target.features).tiles[-1]
    assert (tile.form, tile.kernel) == ("byte-shuffle", kernel_signature(function))
    tuned = target.with_tiles([tile])
    scheduled = rule.apply(function, target.features, tile.tile)
    assert _code(tuned.schedule(function)) == _code(scheduled)
    assert _code(target.schedule(function)) != _code(scheduled)
    assert tune_tiles(program(function), tuned, 2, lambda _: None) == [], "nothing is measured twice"


def test_a_tile_that_is_hardly_faster_does_not_replace_the_default(target, monkeypatch):
    monkeypatch.setattr(tuning, "_measure", lambda tiles, _: {t: 1.0 - 0.001 * i for i, t in enumerate(tiles)})
    function = kernel(FORWARD)
    (tile,) = tune_tiles(program(function), target, 2, lambda _: None)
    assert tile.tile == BitProductRule().choice(function, target.features).tiles[0]


@pytest.mark.thorough
def test_real_measurements_agree_in_their_results(target, monkeypatch):
    monkeypatch.setattr(tuning, "ROUNDS", 2)
    said = []
    tiles = tune_tiles(program(kernel(FORWARD), kernel(BACKWARD)), target, 2, said.append)
    assert [(tile.form, tile.kernel.partition(" ")[0]) for tile in tiles] == [
        ("byte-shuffle", "binary_conv2d"), ("byte-shuffle", "bitplane_conv2d_input_grad"),
    ]  # fmt: skip
    assert all(0 < tile.microseconds <= tile.default_microseconds for tile in tiles)
    assert len(said) == 2


def test_only_this_machine_is_tuned():
    for name in ("rpi5", "cuda"):
        with pytest.raises(FqtError, match="--tune measures on the machine it runs on") as error:
            check_can_tune(make_target(name))
        assert error.value.code == "FQT202"


def _code(function):
    return tvm.IRModule({"main": tirx.PrimFunc(function.params, function.body)}).script()
