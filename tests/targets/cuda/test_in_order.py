"""Ops of independent columns, as emitted for the GPU and executed by the emulation, agree with PyTorch."""

import numpy as np
import pytest
import tvm

from fqt_deploy.codegen.build import lower_relax
from tests.targets.aten_kernel import aten_function, samples_of, tensors_of

SAMPLES = samples_of(lambda function: "fqt.in_order" in str(function.body))


@pytest.fixture(scope="module")
def library(emulated_target, request, cases):
    target, names = emulated_target(), [case["name"] for case in cases(request.module, "library")]
    functions = {name: target.schedule(aten_function(*SAMPLES[name])) for name in names}
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    return target.compile(module, lower_relax)


def test_there_are_some():
    assert any(name.startswith("aten_embedding_dense_backward") for name in SAMPLES)


@pytest.mark.quick(per=lambda case: SAMPLES[case["name"]][0].target)
@pytest.mark.parametrize("name", SAMPLES)
def test_agrees_with_pytorch(library, name):
    op, args, kwargs = SAMPLES[name]
    device = tvm.cuda()
    expected = op.target(*args, **kwargs).contiguous().numpy()
    result = tvm.runtime.tensor(np.full(expected.shape, 7, expected.dtype), device)
    operands = [tvm.runtime.tensor(t.contiguous().numpy(), device) for t in tensors_of(args)]
    library[name](*operands, result)
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-6, atol=4e-7)
