"""An embedding never reads beside its table."""

import numpy as np
import torch
import tvm

from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.targets.registry import make_target
from tests.targets.aten_kernel import aten_function

aten = torch.ops.aten


def test_a_token_that_names_no_row_gives_nan():
    table = torch.arange(12.0).view(4, 3)
    tokens = torch.tensor([[0, 3], [4, -1], [2**40, 1]])
    function = aten_function(aten_ops()[aten.embedding.default], (table, tokens), {})
    target = make_target("cpu")
    kernel = tvm.compile(
        tvm.IRModule({"main": target.schedule(function).with_attr("global_symbol", "main")}), target.tvm_target
    )["main"]
    result = tvm.runtime.tensor(np.zeros((3, 2, 3), np.float32))
    kernel(tvm.runtime.tensor(table.numpy()), tvm.runtime.tensor(tokens.numpy()), result)
    found = result.numpy()
    np.testing.assert_array_equal(found[0], table[[0, 3]].numpy())
    np.testing.assert_array_equal(found[2, 1], table[1].numpy())
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2, 0]).all()
