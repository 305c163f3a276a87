"""``fqt::adam_update``: one step of Adam, or of AdamW where weight decay is decoupled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te, tirx

from fqt_deploy.ops.lib.onnx_body import Attributes, Body, OnnxFunction
from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(
    param: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``torch.optim.Adam`` and ``torch.optim.AdamW`` do.

    Args:
        param: [...] float32.
        m: [...] float32, running mean of the gradient.
        v: [...] float32, running mean of its square.
        grad: [...] float32.
        lr: [G] float32, learning rates of the parameter groups.
        step: [] int64, number of this step, from 1.
        group: which learning rate.
        beta1: decay of ``m``.
        beta2: decay of ``v``.
        eps: added to the denominator.
        weight_decay: zero for none.
        decoupled: decay the parameter, not the gradient.

    Returns:
        New param, m and v, [...] float32 each.
    """
    rate, t = lr[group], step.double()
    step_size = (rate.double() / (1 - beta1**t)).float()
    root = (1 - beta2**t).rsqrt().float()
    if weight_decay and not decoupled:
        grad = grad + weight_decay * param
    m = m + (1 - beta1) * (grad - m)
    v = beta2 * v + (1 - beta2) * grad * grad
    kept = param * (1 - rate * weight_decay) if weight_decay and decoupled else param
    return kept - step_size * m / (v.sqrt() * root + eps), m, v


def fake(
    param: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shape rule: as ``param``, thrice."""
    if not param.shape == m.shape == v.shape == grad.shape or step.dim() != 0 or not 0 <= group < lr.shape[0]:
        raise ValueError(f"parameter {tuple(param.shape)}, its state and gradient {tuple(grad.shape)} do not match")
    shape = tuple(param.shape)
    return param.new_empty(shape), param.new_empty(shape), param.new_empty(shape)


def compute(
    param: te.Tensor,
    m: te.Tensor,
    v: te.Tensor,
    grad: te.Tensor,
    lr: te.Tensor,
    step: te.Tensor,
    group: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> tuple[te.Tensor, ...]:
    """New moments, then one loop nest that overwrites parameter and moments element by element."""

    def correction(i: Any) -> Any:
        t, one = step().astype("float64"), tirx.const(1.0, "float64")
        first = one - tirx.power(tirx.const(beta1, "float64"), t)
        second = one - tirx.power(tirx.const(beta2, "float64"), t)
        factor = tirx.if_then_else(i < 1, lr[group].astype("float64") / first, one / tirx.sqrt(second))
        return factor.astype("float32")

    factors = te.compute((2,), correction, name="adam_update_correction")

    def gradient(i: tuple[Any, ...]) -> Any:
        return grad[i] + weight_decay * param[i] if weight_decay and not decoupled else grad[i]

    new_m = te.compute(param.shape, lambda *i: m[i] + (1 - beta1) * (gradient(i) - m[i]), name="adam_update_m")
    new_v = te.compute(
        param.shape, lambda *i: beta2 * v[i] + (1 - beta2) * gradient(i) * gradient(i), name="adam_update_v"
    )

    def updated(*i: Any) -> Any:
        kept = param[i] * (1.0 - lr[group] * weight_decay) if weight_decay and decoupled else param[i]
        return kept - factors[0] * new_m[i] / (tirx.sqrt(new_v[i]) * factors[1] + eps), new_m[i], new_v[i]

    return tuple(te.compute(param.shape, updated, name="adam_update"))


def cost(
    param: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Cost:
    """A dozen operations an element; reads four tensors and writes three."""
    return Cost(flops=12 * param.numel(), bytes_moved=7 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """First and later steps, no decay, both decays, two groups, odd shapes."""
    g = torch.Generator().manual_seed(0)
    rates = torch.tensor([1e-3, 1e-2])
    cases = (
        ((16, 32, 3, 3), 1, 0, 0.0, False),
        ((7, 5), 10, 1, 1e-2, False),
        ((33,), 1000, 1, 1e-1, True),
        ((1,), 2, 0, 0.0, True),
    )
    for shape, step, group, decay, decoupled in cases:
        param, m, grad = (torch.randn(shape, generator=g) for _ in range(3))
        v = torch.rand(shape, generator=g)
        yield param, m, v, grad, rates, torch.tensor(step), group, 0.9, 0.999, 1e-8, decay, decoupled


def onnx_attributes(
    param: Tensor,
    m: Tensor,
    v: Tensor,
    grad: Tensor,
    lr: Tensor,
    step: Tensor,
    group: int,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Attributes:
    """Weight decay of the gradient and of the parameter, one of which is 0."""
    return {
        "group": group,
        "beta1": beta1,
        "beta2": beta2,
        "eps": eps,
        "gradient_decay": 0.0 if decoupled else float(weight_decay),
        "parameter_decay": float(weight_decay) if decoupled else 0.0,
    }


def onnx_body(op: Body, param: str, m: str, v: str, grad: str, lr: str, step: str) -> tuple[str, str, str]:
    """Corrections in double precision, as in the reference; the rest element-wise."""
    beta1, beta2, one = op.double("beta1"), op.double("beta2"), op.constant(1.0, "float64")
    t, rate = op.cast(step, "float64"), op("Gather", lr, op.integer("group"), axis=0)
    first, second = (op("Sub", one, op("Pow", beta, t)) for beta in (beta1, beta2))
    step_size = op.cast(op("Div", op.cast(rate, "float64"), first), "float32")
    root = op.cast(op("Reciprocal", op("Sqrt", second)), "float32")
    new1, new2 = (op.cast(op("Sub", one, beta), "float32") for beta in (beta1, beta2))
    gradient = op("Add", grad, op("Mul", param, op.float("gradient_decay")))
    m = op("Add", m, op("Mul", op("Sub", gradient, m), new1))
    v = op("Add", op("Mul", v, op.cast(beta2, "float32")), op("Mul", op("Mul", gradient, new2), gradient))
    kept = op("Mul", param, op("Sub", op.constant(1.0, "float32"), op("Mul", rate, op.float("parameter_decay"))))
    denominator = op("Add", op("Mul", op("Sqrt", v), root), op.float("eps"))
    return op("Sub", kept, op("Div", op("Mul", m, step_size), denominator)), m, v


adam_update = OpSpec(
    "adam_update",
    OpKind.UPDATE,
    reference,
    fake,
    compute,
    cost,
    sample_inputs,
    onnx=OnnxFunction(onnx_body, onnx_attributes),
).register()
