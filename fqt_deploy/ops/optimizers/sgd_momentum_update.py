"""``fqt::sgd_momentum_update``: one step of gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    param: Tensor,
    buf: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """What ``torch.optim.SGD`` does with momentum and no dampening.

    Args:
        param: [...] float32.
        buf: [...] float32, momentum; not read at the first step.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        momentum: decay of ``buf``.
        nesterov: look ahead.
        weight_decay: zero for none.

    Returns:
        New param and buf, [...] float32 each.
    """
    gradient = grad + weight_decay * param
    buf = torch.where(step == 1, gradient, momentum * buf + gradient)
    return param - lr[group] * (gradient + momentum * buf if nesterov else buf), buf


def fake(
    param: Tensor,
    buf: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """Shape rule: as ``param``, twice."""
    if not param.shape == buf.shape == grad.shape or step.dim() != 0 or not 0 <= group < lr.shape[0]:
        raise ValueError(f"parameter {tuple(param.shape)}, its state and gradient {tuple(grad.shape)} do not match")
    return param.new_empty(tuple(param.shape)), param.new_empty(tuple(param.shape))


def compute(
    param: te.Tensor,
    buf: te.Tensor,
    grad: te.Tensor,
    lr: te.Tensor,
    step: te.Tensor,
    group: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> tuple[te.Tensor, ...]:
    """The new buffer, then one loop nest that overwrites parameter and buffer element by element."""

    def gradient(i: tuple[Any, ...]) -> Any:
        return grad[i] + weight_decay * param[i] if weight_decay else grad[i]

    new_buf = te.compute(
        param.shape,
        lambda *i: tirx.Select(step().equal(1), gradient(i), momentum * buf[i] + gradient(i)),
        name="sgd_momentum_update_buf",
    )

    def updated(*i: Any) -> Any:
        direction = gradient(i) + momentum * new_buf[i] if nesterov else new_buf[i]
        return param[i] - lr[group] * direction, new_buf[i]

    return tuple(te.compute(param.shape, updated, name="sgd_momentum_update"))


def cost(
    param: Tensor,
    buf: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> Cost:
    """Reads three tensors and writes two."""
    return Cost(flops=(8 if nesterov else 6) * param.numel(), bytes_moved=5 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """First and later steps, decay, look-ahead, two groups, odd shapes."""
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([1e-3, 1e-1])
    cases = (
        ((16, 32, 3, 3), 1, 0, False, 0.0),
        ((7, 5), 10, 1, True, 1e-2),
        ((33,), 1, 1, True, 1e-1),
        ((1,), 2, 0, False, 1e-2),
    )
    for shape, step, group, nesterov, decay in cases:
        param, buf, grad = (torch.randn(shape, generator=g) for _ in range(3))
        yield param, buf, grad, rates, torch.tensor(step), group, 0.9, nesterov, decay


def onnx_body(op: Body, param: str, buf: str, grad: str, lr: str, step: str) -> tuple[str, str]:
    """Element-wise; ``nesterov`` chooses between two directions."""
    momentum = op.float("momentum")
    gradient = op("Add", grad, op("Mul", param, op.float("weight_decay")))
    first = op("Equal", step, op.constant(1, "int64"))
    new = op("Where", first, gradient, op("Add", op("Mul", buf, momentum), gradient))
    ahead = op("Add", gradient, op("Mul", new, momentum))
    direction = op("Where", op.cast(op.integer("nesterov"), "bool"), ahead, new)
    return op("Sub", param, op("Mul", direction, op("Gather", lr, op.integer("group"), axis=0))), new


sgd_momentum_update = OpSpec(
    "sgd_momentum_update", OpKind.UPDATE, reference, fake, compute, cost, sample_inputs, onnx=OnnxFunction(onnx_body)
).register()
