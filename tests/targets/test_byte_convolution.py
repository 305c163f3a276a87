"""Products of codes with levels of weights by bytes equal their references, in every instruction."""

import re
from dataclasses import replace

import pytest
import torch
import tvm

from fqt_deploy.ops.lib.convolution_shape import output_extents
from fqt_deploy.ops.lib.packed_words import pack_last_axis, to_panels
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cpu.products.byte_product import input_gradient, level_convolution
from fqt_deploy.targets.cpu.products.byte_product.code_convolution_cut import Axis
from fqt_deploy.targets.cpu.products.byte_product.least_planes import gradients_pay, levels_pay, signs_pay
from fqt_deploy.targets.cpu.products.byte_product.multiplier import ByteMultiplier, byte_multiplier
from fqt_deploy.targets.products import product_of
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function
from tests.targets.test_byte_product import PROCESSORS, PlainMultiplier, x86_features

KERNELS = {
    "binary_conv2d": level_convolution.kernel_of,
    "level_conv2d": level_convolution.kernel_of,
    "bitplane_conv2d_input_grad": input_gradient.kernel_of,
}
LAYERS = {
    # samples, image, depth, columns, kernel, stride, padding
    "odd sizes, samples that fill no group": (5, (7, 9), 40, 48, (3, 3), (1, 1), (1, 1)),
    "strides that divide nothing": (2, (9, 8), 33, 32, (5, 3), (2, 3), (2, 0)),
    "a stride between single taps": (3, (7, 6), 64, 16, (1, 1), (2, 2), (0, 0)),
    "a stride wider than its kernel": (2, (8, 8), 32, 32, (2, 2), (3, 3), (0, 0)),
    "padding as wide as the kernel": (2, (3, 3), 32, 32, (3, 3), (1, 1), (3, 2)),
    "fewer positions than a tile has": (1, (1, 3), 70, 32, (1, 1), (1, 1), (0, 0)),
    "a product of matrices in several jobs": (1, (1, 557), 96, 80, (1, 1), (1, 1), (0, 0)),
    "several chunks of each tap": (2, (3, 4), 1184, 16, (1, 2), (1, 1), (0, 1)),
    "bands of an image": (1, (40, 24), 64, 32, (3, 3), (2, 2), (1, 1)),
}


def case(name, layer, bits, planes, signed=True, largest=False):
    """The arguments of an op, of random codes and levels, or of the largest ones."""
    samples, image, depth, columns, kernel, stride, padding = LAYERS[layer]
    generator = torch.Generator().manual_seed(bits * 8 + planes)

    def codes(*shape):
        random = torch.randint(0, 2, shape, generator=generator) > 0
        return pack_last_axis(torch.ones(shape, dtype=torch.bool) if largest else random)

    weights = [to_panels(codes(columns, *kernel, depth).flatten(1)) for _ in range(planes)]
    weight = torch.stack(weights) if planes > 1 else weights[0]
    shape = list(kernel), list(stride), list(padding)
    if name == "bitplane_conv2d_input_grad":
        extents = output_extents(list(image), *shape)
        return codes(samples, *extents, bits, depth), weight, columns, depth, list(image), *shape
    if name == "level_conv2d":
        return codes(samples, *image, bits, depth), weight, depth, columns, *shape, signed
    return codes(samples, *image, depth), weight, depth, columns, *shape


def check(name, cases, multiplier):
    """Kernels in products of ``multiplier``, compiled together, against the reference."""
    target = make_target("cpu").tvm_target
    kernels = [KERNELS[name](product_of(op_function(name, arguments)), multiplier) for arguments in cases]
    names = {text: f"k{i}" for i, text in enumerate(dict.fromkeys(kernel.script() for kernel in kernels))}
    functions = {
        names[kernel.script()]: kernel.with_attrs({"tirx.is_scheduled": True, "global_symbol": names[kernel.script()]})
        for kernel in kernels
    }
    module = tvm.compile(tvm.IRModule(functions), target)
    for i, (arguments, kernel) in enumerate(zip(cases, kernels, strict=True)):
        expected = FQT_OPS[name](*arguments).reference()
        found = torch.full_like(expected, 77)
        run = module[names[kernel.script()]]
        run(*(tvm.runtime.from_dlpack(t.contiguous()) for t in (*arguments[:2], found)))
        assert torch.equal(found, expected), i


def widths(name):
    """Bits of a code, planes of a weight and the kind of the grid."""
    if name == "binary_conv2d":
        return [(1, planes, True) for planes in (1, 2, 4)]
    grids = (True, False) if name == "level_conv2d" else (True,)
    return [(bits, planes, signed) for bits in (1, 3, 4, 8) for planes in (1, 2, 4) for signed in grids]


@pytest.mark.quick(4)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", KERNELS)
def test_codes_times_levels(name, layer):
    """In this machine's instruction."""
    multiplier = byte_multiplier(make_target("cpu").features)
    if multiplier is None or not make_target("cpu").features.is_x86:
        pytest.skip("this machine takes another form")
    check(name, [case(name, layer, *width) for width in widths(name)], multiplier)


@pytest.mark.quick(per="lanes")
@pytest.mark.parametrize("lanes", [16, 8])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", KERNELS)
def test_codes_times_levels_in_sums_of_32_bits(name, layer, lanes):
    multiplier = PlainMultiplier("none", lanes, sums_halves=False, rows=4, vectors=2)
    check(name, [case(name, layer, *width) for width in widths(name)[::3]], multiplier)


@pytest.mark.parametrize("name", KERNELS)
def test_codes_times_levels_in_sums_of_16_bits(name):
    """AVX2's pairs of products, which saturate: also of the largest codes and levels, of either sign."""
    x86_features()
    if make_target("cpu").features.vector_bits < 256:
        pytest.skip("this machine has no AVX2")
    multiplier = ByteMultiplier("llvm.x86.avx2.pmadd.ub.sw", lanes=8, sums_halves=True, rows=4, vectors=2)
    layers = ("odd sizes, samples that fill no group", "several chunks of each tap")
    cases = [
        case(name, layer, *width, largest=largest)
        for number, layer in enumerate(layers)
        for width in widths(name)[number::2]
        for largest in (False, True)
    ]
    for codes, weight, *rest in [case(name, layers[1], *width, largest=True) for width in widths(name)[1::2]]:
        cases.append((codes, torch.zeros_like(weight), *rest))  # the least levels
    check(name, cases, multiplier)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("planes", [1, 2, 4])
def test_pairs_fit_sums_of_16_bits(bits, planes):
    """Every width of codes leaves some lanes whose products fit: of codes and levels of four bits 72, of bytes 4."""
    multiplier = ByteMultiplier("none", 8, sums_halves=True, rows=4, vectors=2)
    steps = multiplier.steps(bits, planes, most=10**6)
    assert steps * 2 * (2**bits - 1) * (2**planes - 1) <= 32767
    assert steps >= {(4, 4): 72, (8, 4): 4, (8, 1): 64}.get((bits, planes), 4)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("taps", [1, 2, 3, 5])
@pytest.mark.parametrize("border", [-2, 0, 1, 4])
def test_positions_of_a_phase_read_what_a_stride_left(stride, taps, border):
    """Of a gradient's axis: through each tap exactly the rows that forward read the position through."""
    axis = Axis(10, 20, taps, phases=stride, border=border)
    for position in range(10):
        phase, first = position % stride, position // stride
        for tap in range(taps):
            spread = position + tap - border
            assert bool(axis.reads(phase, tap)) == (spread % stride == 0)
            if spread % stride == 0:
                stored = first + int(axis.shift(phase, tap))
                assert int(axis.row(0, stored)) == spread // stride
                assert 0 <= stored < axis.stored(axis.phase_positions)


@pytest.mark.parametrize("processor", ["znver4", "alderlake"])
def test_sums_stay_in_registers(processor):
    """Compiled on every machine: with sums of 32 bits a loop of all products of a word has no vector on the stack."""
    particular, instruction, products, register = PROCESSORS[processor]
    multiplier = byte_multiplier(x86_features(**particular))
    arguments = case("level_conv2d", "bands of an image", 4, 4, False)
    function = KERNELS["level_conv2d"](product_of(op_function("level_conv2d", arguments)), multiplier)
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor})
    module = tvm.compile(tvm.IRModule({"main": function.with_attr("tirx.is_scheduled", True)}), target)
    blocks = re.split(r"\n\.LBB", module.mod.inspect_source("asm"))
    loop = max(blocks, key=lambda block: block.count(instruction) / len(block.splitlines())).split("\tj")[0]
    assert loop.count(instruction) >= 8 * products
    assert not re.search(rf"{register}.*\(%rsp\)|\(%rsp\).*{register}", loop)


PAYS = {
    # the least planes of a weight: of signs, of levels of 1, 2, 4 and 8 bits, of codes of gradients of 1, 2, 4 and 8
    "znver4": (4, (4, 2, 2, 1), (4, 2, 2, 1)),
    "cascadelake": (4, (2, 2, 2, 1), (2, 2, 2, 1)),
    "alderlake": (4, (4, 4, 4, 2), (4, 4, 4, 1)),
    "skylake-avx512": (None, (4, 4, 4, 2), (4, 4, 4, 1)),
    "x86-64-v3": (None, (4, 4, 4, 2), (4, 4, 4, 1)),
    "x86-64-v2": (None, (None,) * 4, (None,) * 4),
}


@pytest.mark.parametrize("processor", PAYS)
def test_only_where_planes_are_slower(processor, monkeypatch):
    x86_features()
    monkeypatch.setattr("fqt_deploy.targets.cpu.features._missing_here", lambda names, toolchain: [])
    features = make_target("cpu", CpuOptions(mcpu=processor)).features

    def least(pays):
        return next((planes for planes in (1, 2, 4) if pays(planes)), None)

    found = (
        least(lambda planes: signs_pay(features, planes)),
        tuple(least(lambda planes, b=bits: levels_pay(features, b, planes)) for bits in (1, 2, 4, 8)),
        tuple(least(lambda planes, b=bits: gradients_pay(features, b, planes)) for bits in (1, 2, 4, 8)),
    )
    assert found == PAYS[processor]


def test_arm_computes_planes():
    features = replace(make_target("cpu").features, is_x86=False, has_dot_product=True)
    assert not levels_pay(features, 4, 4)
    assert not gradients_pay(features, 8, 4)
    assert not signs_pay(features, 4)
