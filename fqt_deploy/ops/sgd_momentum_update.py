"""``fqt::sgd_momentum_update``: one step of SGD with momentum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    param: Tensor, velocity: Tensor, grad: Tensor, lr: Tensor, step: Tensor, group: int,
    momentum: float, nesterov: bool, weight_decay: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``torch.optim.SGD``; the first step starts the velocity at the gradient.

    Args:
        param: [...] float32.
        velocity: like ``param``.
        grad: like ``param``.
        lr: [G] float32 learning rates.
        step: [] int64, 1 in the first step.
        group: which learning rate.
        momentum: decay of the velocity.
        nesterov: look ahead.
        weight_decay: L2 penalty.

    Returns:
        param, velocity: updated.
    """
    grad = grad + weight_decay * param
    velocity = grad.clone() if int(step) == 1 else momentum * velocity + grad
    return param - lr[group] * (grad + momentum * velocity if nesterov else velocity), velocity


def fake(param: Tensor, velocity: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """Shape rule: as the operands."""
    return torch.empty_like(param), torch.empty_like(velocity)


def compute(
    param: te.Tensor, velocity: te.Tensor, grad: te.Tensor, lr: te.Tensor, step: te.Tensor, group: int,
    momentum: float, nesterov: bool, weight_decay: float,
) -> tuple[te.Tensor, ...]:  # fmt: skip
    """The velocity first; the parameter reads only the new one, so both may be written in place."""

    def gradient(i: Any) -> Any:
        return grad[i] + weight_decay * param[i] if weight_decay else grad[i]

    first = tirx.const(1, "int64")
    new = te.compute(
        velocity.shape,
        lambda *i: tirx.Select(step().equal(first), gradient(i), momentum * velocity[i] + gradient(i)),
        name="sgd_momentum_update_velocity",
    )

    def updated(*i: Any) -> Any:
        return param[i] - lr[group] * (gradient(i) + momentum * new[i] if nesterov else new[i])

    return te.compute(param.shape, updated, name="sgd_momentum_update"), new


def cost(param: Tensor, *_: Any) -> Cost:
    """Memory traffic, mostly."""
    return Cost(flops=5 * param.numel(), bytes_moved=5 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """The first step and a later one, with and without look-ahead and decay."""
    g = torch.Generator().manual_seed(0)
    for shape, step, nesterov, decay in (((64, 32), 1, False, 0.0), ((7, 5), 2, True, 0.01)):
        p, velocity, grad = (torch.randn(shape, generator=g) for _ in range(3))
        yield p, velocity, grad, torch.tensor([0.1]), torch.tensor(step), 0, 0.9, nesterov, decay


sgd_momentum_update = OpSpec(
    "sgd_momentum_update", OpKind.UPDATE, reference, fake, compute, cost, sample_inputs, tolerance=1e-6
).register()
