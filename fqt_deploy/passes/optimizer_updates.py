"""How each optimizer ends the step: the op, the state that it keeps, and its constant arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter
from fqt_deploy.core.optimizer import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
)
from fqt_deploy.passes.adafactor_update import adafactor_update
from fqt_deploy.passes.update import Operands, Update

fqt = torch.ops.fqt


def _fused(target: Any, moments: Iterable[str], *arguments: Any) -> Update:
    """One op, ``target(param, *moments, grad, lr, step, group, *arguments, every)``; moments are like the parameter."""
    extents: dict[str, Callable[[list[int]], list[int]]] = dict.fromkeys(moments, list)

    def emit(emit: Emitter, o: Operands) -> list[fx.Node]:
        result = emit(target, o.parameter, *o.state, o.gradient, o.rates, o.count, o.group, *arguments, o.every)
        return [emit.item(result, i) for i in range(1 + len(o.state))] if o.state else [result]

    return Update(extents, emit)


def _adam(o: Adam, axes: int) -> Update:
    decoupled = isinstance(o, AdamW)
    return _fused(fqt.adam_update.default, ("adam_m", "adam_v"), *o.betas, o.eps, o.weight_decay, decoupled)


def _sgd(o: SGD, axes: int) -> Update:
    if not o.momentum:
        return _fused(fqt.sgd_update.default, (), o.weight_decay)
    arguments = (o.momentum, o.dampening, o.nesterov, o.weight_decay)
    return _fused(fqt.sgd_momentum_update.default, ("sgd_momentum",), *arguments)


def _rmsprop(o: RMSprop, axes: int) -> Update:
    if not o.momentum:
        return _fused(fqt.rmsprop_update.default, ("rmsprop_v",), o.alpha, o.eps, o.weight_decay)
    moments, arguments = ("rmsprop_v", "rmsprop_momentum"), (o.alpha, o.eps, o.momentum, o.weight_decay)
    return _fused(fqt.rmsprop_momentum_update.default, moments, *arguments)


def _lion(o: Lion, axes: int) -> Update:
    return _fused(fqt.lion_update.default, ("lion_m",), *o.betas, o.weight_decay)


def _adadelta(o: Adadelta, axes: int) -> Update:
    moments = ("adadelta_v", "adadelta_u")
    return _fused(fqt.adadelta_update.default, moments, o.rho, o.eps, o.weight_decay)


def _adagrad(o: Adagrad, axes: int) -> Update:
    arguments = (o.lr_decay, o.initial_accumulator_value, o.eps, o.weight_decay)
    return _fused(fqt.adagrad_update.default, ("adagrad_sum",), *arguments)


def _radam(o: RAdam, axes: int) -> Update:
    arguments = (*o.betas, o.eps, o.weight_decay, o.decoupled_weight_decay)
    return _fused(fqt.radam_update.default, ("radam_m", "radam_v"), *arguments)


def _nadam(optimizer: NAdam, axes: int) -> Update:
    """Two ops: the scalar that corrects the mean, then the parameter and its moments."""
    extents: dict[str, Callable[[list[int]], list[int]]] = {
        "nadam_m": list,
        "nadam_v": list,
        "nadam_rest": lambda _: [],
    }
    decay = optimizer.momentum_decay

    def emit(emit: Emitter, o: Operands) -> list[fx.Node]:
        m, v, old = o.state
        rest = emit(fqt.nadam_product_update.default, old, o.count, optimizer.betas[0], decay, o.every)
        result = emit(
            fqt.nadam_update.default, o.parameter, m, v, o.gradient, rest, o.rates, o.count, o.group, *optimizer.betas,
            optimizer.eps, decay, optimizer.weight_decay, optimizer.decoupled_weight_decay, o.every,
        )  # fmt: skip
        return [*(emit.item(result, i) for i in range(3)), rest]

    return Update(extents, emit)


_UPDATES: Mapping[type[Optimizer], Callable[[Any, int], Update]] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    RMSprop: _rmsprop,
    Lion: _lion,
    Adafactor: adafactor_update,
    Adadelta: _adadelta,
    Adagrad: _adagrad,
    RAdam: _radam,
    NAdam: _nadam,
}


def update_of(optimizer: Optimizer, path: str, extents: list[int]) -> Update:
    """The update that ``optimizer`` makes of the parameter of this name and shape."""
    own = optimizer.for_parameter(path, len(extents))
    return _UPDATES[type(optimizer)](own, min(len(extents), 2))


def zero_state(optimizer: Optimizer, path: str, parameter: Tensor) -> dict[str, Tensor]:
    """What ``optimizer`` keeps beside the parameter ``path``, by name, before the first step."""
    extents = list(parameter.shape)
    kinds = update_of(optimizer, path, extents).extents
    return {f"{kind}/{path}": parameter.new_zeros(shape_of(extents)) for kind, shape_of in kinds.items()}
