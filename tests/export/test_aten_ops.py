"""Every ATen op with a kernel: its ONNX nodes compute what PyTorch computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx
from torch._subclasses import FakeTensorMode

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.graph import Stage, TrainingGraph, propagate
from fqt_deploy.export.onnx_model import to_onnx
from fqt_deploy.ops.aten.aten_op import aten_ops

CALLS = [
    pytest.param(target, *call, id=f"{target}-{i}")
    for target, op in aten_ops().items()
    for i, call in enumerate(op.samples)
]


def _graph(target: Any, args: Any, kwargs: Any) -> tuple[TrainingGraph, dict[str, np.ndarray]]:
    """A graph of one call whose tensor operands are inputs, and their values."""
    graph, mode, feeds = fx.Graph(), FakeTensorMode(), {}

    def placeholder(value: Any) -> Any:
        if isinstance(value, list):
            return [placeholder(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        name = f"operand{len(feeds)}"
        feeds[name] = np.array(value.numpy())
        node = graph.placeholder(name)
        node.meta["val"] = mode.from_tensor(value.contiguous())
        return node

    operands = [placeholder(a) for a in args]
    call = graph.call_function(target, tuple(operands), kwargs)
    propagate(call)
    graph.output((call,))
    module = fx.GraphModule(torch.nn.Module(), graph)
    return TrainingGraph(module, list(feeds), ["result"], {}, 1, Stage.LOWERED), feeds


@pytest.mark.quick(per="target")
@pytest.mark.parametrize(("target", "args", "kwargs"), CALLS)
def test_agrees_with_pytorch(target: Any, args: Any, kwargs: Any) -> None:
    graph, feeds = _graph(target, args, kwargs)
    model = to_onnx(graph, "one", {}, training=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(["result"], feeds)
    expected = target(*args, **kwargs).numpy()
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


NAN, INFINITY = float("nan"), float("inf")
SPECIAL = torch.tensor([[0.0, 1.0, -1.0, INFINITY, -INFINITY, NAN, 1e-8, -3e38, 1e-6, -0.5, 2.0, 0.3]])
WITH_NAN = {
    "relu": (torch.ops.aten.relu.default, ()),
    "clamp": (torch.ops.aten.clamp.default, (-0.5, 1.0)),
    "clamp_min": (torch.ops.aten.clamp_min.default, (0.0,)),
    "clamp_max": (torch.ops.aten.clamp_max.default, (0.0,)),
    "maximum": (torch.ops.aten.maximum.default, (SPECIAL.roll(5, 1),)),
    "minimum": (torch.ops.aten.minimum.default, (SPECIAL.roll(5, 1),)),
    "amax": (torch.ops.aten.amax.default, ([1],)),
    "amin": (torch.ops.aten.amin.default, ([1],)),
    "sign": (torch.ops.aten.sign.default, ()),
    "unequal": (torch.ops.aten.ne.Tensor, (SPECIAL,)),
    "difference": (torch.ops.aten.sub.Tensor, (SPECIAL,)),
    "log1p": (torch.ops.aten.log1p.default, ()),
    "expm1": (torch.ops.aten.expm1.default, ()),
}


@pytest.mark.parametrize("name", WITH_NAN)
def test_special_values(name: str) -> None:
    """NaN and infinities come out where PyTorch has them, and small numbers keep their digits."""
    target, others = WITH_NAN[name]
    graph, feeds = _graph(target, (SPECIAL, *others), {})
    model = to_onnx(graph, "one", {}, training=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(["result"], feeds)
    np.testing.assert_allclose(actual, target(SPECIAL, *others).numpy(), rtol=3e-7, atol=0)
