"""Sums of scattered rows are those of a loop over the sources, bit for bit, whatever computes them."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.aten.embedding import EmbeddingDenseBackward
from fqt_deploy.targets.registry import make_target
from tests.targets.aten_kernel import aten_function


@pytest.mark.parametrize(
    ("rows", "tokens", "width", "padding"),
    [(50, 4096, 128, 0), (1000, 2048, 48, -1), (7, 3000, 24, 3), (20, 300, 9, 1)],
)
def test_the_gradient_of_an_embedding_adds_in_order(rows, tokens, width, padding):
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, rows, (tokens,), generator=generator)
    gradient = torch.randn(tokens, width, generator=generator)
    function = aten_function(EmbeddingDenseBackward, (gradient, indices, rows, padding, False), {})
    target = make_target("cpu")
    module = tvm.IRModule({"kernel": target.schedule(function).with_attr("global_symbol", "kernel")})
    result = tvm.runtime.tensor(np.full((rows, width), 7, np.float32))
    tvm.compile(module, target.tvm_target)["kernel"](
        tvm.runtime.tensor(gradient.numpy()), tvm.runtime.tensor(indices.numpy()), result
    )
    expected = np.zeros((rows, width), np.float32)
    for token, row in zip(indices.tolist(), gradient.numpy(), strict=True):
        if token != padding:
            expected[token] += row
    np.testing.assert_array_equal(result.numpy(), expected)
