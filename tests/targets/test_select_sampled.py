"""Sampling on a CPU, of more groups than the op's samples have: the same integers as the reference."""

import numpy as np
import pytest
import torch
import tvm

from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.targets.registry import make_target
from tests.targets.op_kernel import op_function

SCORES = {
    "smooth": lambda n, r: torch.rand(n, generator=r),
    "few large ones": lambda n, r: torch.rand(n, generator=r) ** 30,
    "ties": lambda n, r: torch.randint(0, 3, (n,), generator=r).float(),
    "equal": lambda n, r: torch.ones(n),
    "not a number": lambda n, r: torch.where(torch.arange(n) == 5, float("nan"), torch.rand(n, generator=r)),
}


@pytest.mark.parametrize(("groups", "keep"), [(3072, 768), (1000, 250), (257, 256)])
def test_sorting_keeps_the_groups_that_counting_keeps(groups, keep):
    target = make_target("cpu")
    key = torch.tensor([groups, -9], dtype=torch.int32)
    function = None
    for name, scores in SCORES.items():
        arguments = scores(groups, torch.Generator().manual_seed(0)), key, keep
        expected = FQT_OPS["select_sampled"](*arguments).reference()
        if function is None:
            scheduled = target.schedule(op_function("select_sampled", arguments))
            function = tvm.compile(tvm.IRModule({"main": scheduled}), target.tvm_target)["main"]
        results = [tvm.runtime.tensor(np.full(tuple(e.shape), -7, dtype=e.numpy().dtype)) for e in expected]
        function(*(tvm.runtime.tensor(a.numpy()) for a in arguments[:2]), *results)
        for result, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.numpy(), right.numpy(), err_msg=name)
