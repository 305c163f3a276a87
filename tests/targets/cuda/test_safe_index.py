"""Kernels for the GPU, executed by the emulation, read and write nothing where an index is out of range."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.codegen.build import lower_relax
from fqt_deploy.ops.aten.aten_op import aten_ops
from tests.ops.test_safe_index import CASES
from tests.targets.aten_kernel import aten_function, tensors_of

CHOSEN = ("gather", "index of two axes", "index_put of two axes, added", "scatter")


def symbol(name):
    return name.replace(" ", "_").replace(",", "")


@pytest.fixture(scope="module")
def library(emulated_target):
    target = emulated_target()
    functions = {}
    for name in CHOSEN:
        op, args, _ = CASES[name]
        function = target.schedule(aten_function(aten_ops()[op], args, {}))
        functions[symbol(name)] = function.with_attr("global_symbol", symbol(name))
    return target.compile(tvm.IRModule(functions), lower_relax)


@pytest.mark.parametrize("name", CHOSEN)
def test_an_index_out_of_range_reads_nothing_and_writes_nothing(library, name):
    _, args, expected = CASES[name]
    assert args[0].dtype == torch.float32
    wanted = np.array(expected, np.float32)
    result = tvm.runtime.tensor(np.full(wanted.shape, 77, np.float32), tvm.cuda())
    operands = [tvm.runtime.tensor(t.contiguous().numpy(), tvm.cuda()) for t in tensors_of(args)]
    library[symbol(name)](*operands, result)
    np.testing.assert_array_equal(result.numpy(), wanted)
