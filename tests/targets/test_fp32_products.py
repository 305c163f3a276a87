"""fp32 products of sizes that the samples of their ops do not reach: several chunks, tiles across images, few taps."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.cpu.target import RULES
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

GEOMETRIES = (
    (3, 64, 32, 8, 32, 3, 1),  # three chunks of positions
    (8, 2, 2, 64, 48, 3, 1),  # tiles across images
    (5, 7, 7, 24, 16, 3, 2),  # odd rows, a stride
    (3, 9, 8, 16, 32, 5, 3),  # three phases of rows, one of them shorter
    (2, 8, 8, 32, 16, 1, 2),  # phases without taps
    (2, 40, 33, 3, 64, 3, 1),  # an accumulator for every tap
    (1, 1, 96, 40, 64, 1, 1),  # a linear layer
    (3, 12, 12, 16, 72, 1, 1),  # vectors of eight channels
    (2, 9, 8, 88, 24, 3, 2),  # the same with a stride
    (2, 8, 8, 3, 12, 3, 2),  # vectors of four channels
    (2, 9, 8, 16, 24, 3, 1, 0),  # rows without a border
    (3, 8, 9, 3, 16, 3, 2, 0),  # the same with a stride, and an accumulator for every tap
)
"""N, H, W, I, O, kernel, stride; the padding, where it is not half the kernel."""


def sample(name, geometry):
    """Arguments of op ``name``."""
    n, h, w, i, o, kernel, stride, *padded = geometry
    padding = padded[0] if padded else kernel // 2
    oh, ow = ((extent + 2 * padding - kernel) // stride + 1 for extent in (h, w))
    r = torch.Generator().manual_seed(0)
    x, weight = torch.randn(n, h, w, i, generator=r), torch.randn(o, i, kernel, kernel, generator=r)
    g = torch.randn(n, oh, ow, o, generator=r)
    strides, paddings = [stride, stride], [padding, padding]
    return {
        "conv2d": (x, weight, strides, paddings),
        "conv2d_input_grad": (g, weight, [h, w], strides, paddings),
        "conv2d_weight_grad": (x, g, [kernel, kernel], strides, paddings),
    }[name]


def product(name, geometry):
    """Arguments of op ``name``, its compiled kernel and its reference."""
    arguments = sample(name, geometry)
    target = make_target("cpu")
    function = target.schedule(op_function(name, arguments))
    module = tvm.compile(tvm.IRModule({"main": function}), target.tvm_target)
    return arguments, module["main"], FQT_OPS[name](*arguments).reference()


@pytest.mark.parametrize(("padding", "copies"), [(0, 0), (1, 1)])
def test_an_image_is_copied_only_into_a_border(padding, copies):
    function = op_function("conv2d", sample("conv2d", (2, 9, 8, 16, 24, 3, 1, padding)))
    scheduled = make_target("cpu").schedule(function)
    assert scheduled.script().count("rows = T.sblock_alloc_buffer") == copies


@pytest.mark.parametrize("channels", [72, 24, 12])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_channels_that_fill_no_vector_of_sixteen_are_vectorized(name, channels):
    function = op_function(name, sample(name, (2, 8, 8, channels, channels, 1, 1)))
    features = make_target("cpu").features
    assert any(rule.apply(function, features) is not None for rule in RULES if name in rule.ops)


def run(kernel, arguments, shape, threads):
    tvm.get_global_func("runtime.config_threadpool")(1, threads)
    result = tvm.runtime.tensor(np.zeros(shape, dtype=np.float32))
    kernel(*(tvm.runtime.tensor(a.numpy()) for a in arguments if isinstance(a, torch.Tensor)), result)
    return result.numpy()


@pytest.mark.quick(2, per="name")
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("name", ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"])
def test_products_equal_their_reference_on_any_number_of_threads(name, geometry):
    arguments, kernel, expected = product(name, geometry)
    alone, both = (run(kernel, arguments, expected.shape, threads) for threads in (1, 2))
    np.testing.assert_array_equal(alone, both)
    np.testing.assert_allclose(alone, expected.numpy(), rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
