"""``fqt::sgd_update``: one step of plain gradient descent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(param: Tensor, grad: Tensor, lr: Tensor, group: int, weight_decay: float) -> Tensor:
    """What ``torch.optim.SGD`` does without momentum.

    Args:
        param: [...] float32.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        group: which learning rate.
        weight_decay: zero for none.

    Returns:
        [...] float32.
    """
    return param - lr[group] * (grad + weight_decay * param)


def fake(param: Tensor, grad: Tensor, lr: Tensor, group: int, weight_decay: float) -> Tensor:
    """Shape rule: as ``param``."""
    if param.shape != grad.shape or not 0 <= group < lr.shape[0]:
        raise ValueError(f"parameter {tuple(param.shape)} and gradient {tuple(grad.shape)} do not match")
    return param.new_empty(tuple(param.shape))


def compute(param: te.Tensor, grad: te.Tensor, lr: te.Tensor, group: int, weight_decay: float) -> te.Tensor:
    """Element-wise; may overwrite the parameter in place."""

    def updated(*i: Any) -> Any:
        gradient = grad[i] + weight_decay * param[i] if weight_decay else grad[i]
        return param[i] - lr[group] * gradient

    return te.compute(param.shape, updated, name="sgd_update")


def cost(param: Tensor, grad: Tensor, lr: Tensor, group: int, weight_decay: float) -> Cost:
    """Reads two tensors and writes one."""
    return Cost(flops=4 * param.numel(), bytes_moved=3 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """With and without decay, two groups, odd shapes."""
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([1e-3, 1e-1])
    for shape, group, decay in (((16, 32, 3, 3), 0, 0.0), ((7, 5), 1, 1e-2), ((1,), 1, 0.0)):
        yield torch.randn(shape, generator=g), torch.randn(shape, generator=g), rates, group, decay


def onnx_body(op: Body, param: str, grad: str, lr: str) -> str:
    """Element-wise."""
    gradient = op("Add", grad, op("Mul", param, op.float("weight_decay")))
    return op("Sub", param, op("Mul", gradient, op("Gather", lr, op.integer("group"), axis=0)))


sgd_update = OpSpec(
    "sgd_update", OpKind.UPDATE, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
