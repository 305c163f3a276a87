"""``fqt::sgd_update``: one step of plain SGD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tvm import te

from fqt_deploy.ops.spec import Cost, OpKind, OpSpec, tensor_bytes


def reference(param: Tensor, grad: Tensor, lr: Tensor, group: int, weight_decay: float) -> Tensor:
    """``torch.optim.SGD`` without momentum.

    Args:
        param: [...] float32.
        grad: like ``param``.
        lr: [G] float32 learning rates.
        group: which learning rate.
        weight_decay: L2 penalty.

    Returns:
        The updated parameter.
    """
    return param - lr[group] * (grad + weight_decay * param)


def fake(param: Tensor, grad: Tensor, lr: Tensor, group: int, weight_decay: float) -> Tensor:
    """Shape rule: as ``param``."""
    return torch.empty_like(param)


def compute(param: te.Tensor, grad: te.Tensor, lr: te.Tensor, group: int, weight_decay: float) -> te.Tensor:
    """Element-wise."""
    return te.compute(
        param.shape, lambda *i: param[i] - lr[group] * (grad[i] + weight_decay * param[i]), name="sgd_update"
    )


def cost(param: Tensor, *_: Any) -> Cost:
    """Memory traffic, mostly."""
    return Cost(flops=4 * param.numel(), bytes_moved=3 * tensor_bytes(param))


def sample_inputs() -> Iterator[tuple[Any, ...]]:
    """With and without decay."""
    g = torch.Generator().manual_seed(0)
    for shape, decay in (((64, 32), 0.0), ((7, 5), 0.01)):
        yield torch.randn(shape, generator=g), torch.randn(shape, generator=g), torch.tensor([0.1]), 0, decay


sgd_update = OpSpec(
    "sgd_update", OpKind.UPDATE, reference, fake, compute, cost, sample_inputs, tolerance=1e-6
).register()
