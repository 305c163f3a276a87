"""Depthwise convolutions: what the cut leaves to each tile, and kernels of sizes that the samples do not reach."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.lib.convolution_axes import ConvolutionAxes
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.fp32.depthwise_cut import DepthwiseCut, forward_phases, gradient_phases, vector_lanes
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

GEOMETRIES = (
    (16, 4, 4, 384, 7, 1, 3, 1),  # rows written out
    (2, 2, 2, 768, 7, 1, 3, 1),  # most taps reach nothing
    (1, 61, 70, 16, 3, 1, 1, 1),  # one sample in many parts, tiles in a loop
    (3, 37, 45, 24, 5, 2, 2, 1),  # two phases of odd extents
    (2, 19, 23, 32, 3, 2, 2, 2),  # a stride and a dilation with a common divisor: phases without taps
    (2, 25, 25, 48, 3, 3, 0, 2),  # rows that nothing reads
    (33, 6, 6, 72, 5, 1, 2, 1),  # a last job with fewer samples, eight channels a vector
    (2, 9, 40, 20, 11, 1, 5, 1),  # more taps than registers, four channels a vector
    (1, 1, 130, 16, 1, 1, 0, 1),  # one tap
)
"""N, H, W, C, kernel, stride, padding, dilation."""


def arguments_of(name, geometry):
    """Arguments of op ``name``."""
    n, h, w, c, kernel, stride, padding, dilation = geometry
    r = torch.Generator().manual_seed(0)
    axes = [[value, value] for value in (stride, padding, dilation)]
    weight = torch.randn(c, 1, kernel, kernel, generator=r)
    if name == "grouped_conv":
        return (torch.randn(n, h, w, c, generator=r), weight, *axes, c)
    outputs = ConvolutionAxes([kernel, kernel], *axes).outputs([h, w])
    return (torch.randn(n, *outputs, c, generator=r), weight, [h, w], *axes, c)


@pytest.mark.quick(2, per="name")
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", ["grouped_conv", "grouped_conv_input_grad"])
def test_kernels_equal_their_reference_on_any_number_of_threads(name, geometry):
    arguments = arguments_of(name, geometry)
    target = make_target("cpu")
    function = target.schedule(op_function(name, arguments))
    kernel = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target)["main"]
    expected = FQT_OPS[name](*arguments).reference().numpy()
    found = []
    for threads in (1, 2):
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        result = tvm.runtime.tensor(np.full(expected.shape, np.nan, dtype=np.float32))
        kernel(*(tvm.runtime.tensor(a.numpy()) for a in arguments[:2]), result)
        found.append(result.numpy())
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def cuts(geometry):
    """The cuts of a convolution and of its input gradient, with 16 and with 32 registers."""
    n, h, w, c, kernel, stride, padding, dilation = geometry
    axes = ConvolutionAxes([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2)
    outputs = axes.outputs([h, w])
    for phases, source, result in ((forward_phases, [h, w], outputs), (gradient_phases, outputs, [h, w])):
        rows, columns = (phases(axes, axis, source[axis], result[axis]) for axis in (0, 1))
        sizes = tuple(source), tuple(result), (kernel, kernel)
        for registers in (16, 32):
            yield DepthwiseCut(n, c, *sizes, rows, columns, 4, registers), phases is forward_phases


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_tiles_cover_a_row_once_and_know_which_read_inside_alone(geometry):
    for cut, _ in cuts(geometry):
        seen = []
        for tiles in cut.tiles():
            for tile in range(tiles.count):
                for phase, width in zip(cut.columns, tiles.widths, strict=True):
                    first = tiles.first + tile * max(tiles.widths)
                    seen += [phase.first + phase.step * (first + o) for o in range(width)]
                    if tiles.inside:
                        assert all(len(phase.taps_at(first + o)) == phase.count for o in range(width))
        assert sorted(seen) == list(range(cut.result[1]))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_position_has_the_taps_that_reach_it(geometry):
    *_, kernel, stride, padding, dilation = geometry
    for cut, is_forward in cuts(geometry):
        for phase in cut.rows:
            for i in range(phase.positions):
                at = phase.first + phase.step * i
                found = {
                    (phase.scale * i + phase.offset + phase.stride * j, phase.tap + phase.tap_step * j)
                    for j in phase.taps_at(i)
                }
                expected = set()
                for place, tap in itertools.product(range(cut.source[0]), range(kernel)):
                    output, position = (at, place) if is_forward else (place, at)
                    if position == output * stride + tap * dilation - padding:
                        expected.add((place, tap))
                assert found == expected
                assert list(range(int(phase.begin(i)), int(phase.end(i)))) == phase.taps_at(i)


def test_borders_are_not_padded_and_a_place_is_read_once_for_all_its_results():
    """Of 49 products of 16 results, a row of 2 x 2 images has 4: their number is what the kernel writes out."""
    arguments = arguments_of("grouped_conv", (2, 2, 2, 768, 7, 1, 3, 1))
    function = make_target("cpu").schedule(op_function("grouped_conv", arguments))
    products = [line for line in function.script().splitlines() if " * taps[" in line]
    assert len(products) == 2 * 2 * 4


@pytest.mark.parametrize(
    ("vector_bits", "registers", "lanes"), [(512, 32, 16), (256, 16, 8), (128, 32, 8), (128, 16, 4)]
)
def test_vectors_are_as_wide_as_leave_sixteen_registers(vector_bits, registers, lanes):
    features = dataclasses.replace(make_target("cpu").features, vector_bits=vector_bits, vector_registers=registers)
    assert vector_lanes(96, features) == lanes
    assert vector_lanes(20, features) == 4
    assert vector_lanes(6, features) is None
