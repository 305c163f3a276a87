"""``fqt::adam_update``: one step of Adam or AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    param: Tensor, m: Tensor, v: Tensor, grad: Tensor, lr: Tensor, step: Tensor, group: int,
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """``torch.optim.Adam``, or ``AdamW`` when the decay is decoupled.

    Args:
        param: [...] float32.
        m: first moment, like ``param``.
        v: second moment, like ``param``.
        grad: like ``param``.
        lr: [G] float32 learning rates.
        step: [] int64, 1 in the first step.
        group: which learning rate.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        weight_decay: L2 penalty, or decoupled decay.
        decoupled: AdamW.

    Returns:
        param, m, v: updated.
    """
    if decoupled:
        param = param * (1 - lr[group] * weight_decay)
    else:
        grad = grad + weight_decay * param
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    rate = lr[group].double() / (1 - beta1 ** step.double())
    correction = 1 / (1 - beta2 ** step.double()).sqrt()
    return param - rate.float() * m / (v.sqrt() * correction.float() + eps), m, v


def fake(param: Tensor, m: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule: as the operands."""
    return torch.empty_like(param), torch.empty_like(m), torch.empty_like(v)


def compute(
    param: te.Tensor, m: te.Tensor, v: te.Tensor, grad: te.Tensor, lr: te.Tensor, step: te.Tensor, group: int,
    beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool,
) -> tuple[te.Tensor, ...]:  # fmt: skip
    """Moments first; the parameter reads only the new moments, so all three may be written in place."""

    def correction(i: Any) -> Any:
        one, count = tirx.const(1.0, "float64"), step().astype("float64")
        rate = lr[group].astype("float64") / (one - tirx.power(tirx.const(beta1, "float64"), count))
        root = one / tirx.sqrt(one - tirx.power(tirx.const(beta2, "float64"), count))
        return tirx.Select(i.equal(0), rate, root).astype("float32")

    scalars = te.compute((2,), correction, name="adam_update_correction")

    def gradient(i: Any) -> Any:
        return grad[i] if decoupled or not weight_decay else grad[i] + weight_decay * param[i]

    new_m = te.compute(m.shape, lambda *i: beta1 * m[i] + (1 - beta1) * gradient(i), name="adam_update_m")
    new_v = te.compute(v.shape, lambda *i: beta2 * v[i] + (1 - beta2) * gradient(i) * gradient(i), name="adam_update_v")

    def updated(*i: Any) -> Any:
        kept = param[i] * (1.0 - lr[group] * weight_decay) if decoupled else param[i]
        return kept - scalars[0] * new_m[i] / (tirx.sqrt(new_v[i]) * scalars[1] + eps)

    return te.compute(param.shape, updated, name="adam_update"), new_m, new_v


def cost(param: Tensor, *_: Any) -> Cost:
    """Memory traffic, mostly."""
    return Cost(flops=12 * param.numel(), bytes_moved=7 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """Adam without and with decay, AdamW; the first step and a late one."""
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([1e-3, 1e-2])
    for shape, step, decay, decoupled in (((64, 32), 1, 0.0, False), ((7, 5), 9, 0.01, False), ((33,), 999, 0.1, True)):
        p, m, grad = (torch.randn(shape, generator=g) for _ in range(3))
        v = torch.rand(shape, generator=g)
        yield p, m, v, grad, rates, torch.tensor(step), 1, 0.9, 0.999, 1e-8, decay, decoupled


adam_update = OpSpec(
    "adam_update", OpKind.UPDATE, reference, fake, compute, cost, sample_inputs, tolerance=1e-6
).register()
