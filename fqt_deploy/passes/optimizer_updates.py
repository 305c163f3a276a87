"""Which op each optimizer ends the step with, the state it keeps, and its constant arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fqt_deploy.core.optimizer import SGD, Adam, AdamW, Lion, Optimizer, RMSprop

fqt = torch.ops.fqt


@dataclass(frozen=True)
class Update:
    """The update of one parameter: ``target(param, *moments, grad, lr, step, group, *arguments, every)``.

    Attributes:
        target: the op.
        moments: prefixes of the names of the state that it keeps beside the parameter, in the op's order.
        arguments: constant arguments.
    """

    target: Any
    moments: tuple[str, ...]
    arguments: tuple[Any, ...]


def _adam(o: Adam) -> Update:
    moments = ("adam_m", "adam_v")
    return Update(fqt.adam_update.default, moments, (*o.betas, o.eps, o.weight_decay, isinstance(o, AdamW)))


def _sgd(o: SGD) -> Update:
    if not o.momentum:
        return Update(fqt.sgd_update.default, (), (o.weight_decay,))
    arguments = (o.momentum, o.dampening, o.nesterov, o.weight_decay)
    return Update(fqt.sgd_momentum_update.default, ("sgd_momentum",), arguments)


def _rmsprop(o: RMSprop) -> Update:
    if not o.momentum:
        return Update(fqt.rmsprop_update.default, ("rmsprop_v",), (o.alpha, o.eps, o.weight_decay))
    arguments = (o.alpha, o.eps, o.momentum, o.weight_decay)
    return Update(fqt.rmsprop_momentum_update.default, ("rmsprop_v", "rmsprop_momentum"), arguments)


def _lion(o: Lion) -> Update:
    return Update(fqt.lion_update.default, ("lion_m",), (*o.betas, o.weight_decay))


_UPDATES: Mapping[type[Optimizer], Callable[[Any], Update]] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    RMSprop: _rmsprop,
    Lion: _lion,
}

ZERO_STATE = (
    "adam_m", "adam_v", "sgd_momentum", "rmsprop_v", "rmsprop_momentum", "lion_m", "grad_sum",
)  # fmt: skip
"""State beside a parameter that starts from zero, by the prefix of its name."""


def update_of(optimizer: Optimizer) -> Update:
    """The update that ``optimizer`` makes, whose hyperparameters are those of the parameter."""
    return _UPDATES[type(optimizer)](optimizer)
