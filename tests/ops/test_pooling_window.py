"""Windows that leave the image read its nearest elements: maxima and positions are as with minus infinity outside."""

import itertools
import math

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

WINDOWS = [([3, 3], [1, 2], [1, 1]), ([2, 3], [2, 1], [1, 1]), ([4, 1], [3, 1], [2, 0]), ([4, 4], [1, 1], [2, 2])]
IMAGES = [(2, 6, 5, 16), (2, 3, 2, 3)]
CASES = [
    (name, shape, *window)
    for name, shape, window in itertools.product(("max_pool2d", "max_pool2d_argmax"), IMAGES, WINDOWS)
    if all(extent + 2 * pad >= size for extent, size, pad in zip(shape[1:3], window[0], window[2], strict=True))
]


@pytest.fixture(scope="module")
def library():
    target, functions = make_target("cpu"), {}
    for i, (name, shape, *window) in enumerate(CASES):
        function = target.schedule(op_function(name, (torch.zeros(shape), *window)))
        functions[f"case{i}"] = function.with_attr("global_symbol", f"case{i}")
    return tvm.compile(tvm.IRModule(functions), target.tvm_target)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
@pytest.mark.parametrize("values", [[0.0], [-math.inf], [-math.inf, -2.0, 1.0]], ids=str)
def test_maxima_and_positions_are_those_of_pytorch(library, number, values):
    name, shape, *window = CASES[number]
    x = torch.tensor(values)[torch.randint(len(values), shape, generator=torch.Generator().manual_seed(number))]
    expected = FQT_OPS[name](x, *window).reference().numpy()
    found = tvm.runtime.tensor(np.empty_like(expected))
    library[f"case{number}"](tvm.runtime.tensor(x.numpy()), found)
    np.testing.assert_array_equal(found.numpy(), expected)
