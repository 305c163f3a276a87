"""How each optimizer ends the step: the op, the state that it keeps, and its constant arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.core.graph import Emitter, TrainingGraph
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
from fqt_deploy.ops.optimizers.coded_moments_op import block_length
from fqt_deploy.passes.adafactor_update import adafactor_update
from fqt_deploy.passes.insert_scq import ROLES
from fqt_deploy.passes.update import Operands, Update

fqt = torch.ops.fqt


def _fused(target: Any, moments: Iterable[str], *arguments: Any) -> Update:
    """One op, ``target(param, *moments, grad, lr, step, group, *arguments, every)``; moments are like the parameter."""
    extents: dict[str, Callable[[list[int]], list[int]]] = dict.fromkeys(moments, list)

    def emit(emit: Emitter, o: Operands) -> list[fx.Node]:
        result = emit(target, o.parameter, *o.state, o.gradient, o.rates, o.count, o.group, *arguments, o.every)
        return [emit.item(result, i) for i in range(1 + len(o.state))] if o.state else [result]

    return Update(extents, emit)


def _adam(o: Adam, extents: list[int]) -> Update:
    decoupled = isinstance(o, AdamW)
    if o.moment_bits == 8 and (blocks := _blocks(extents)) is not None:
        return _coded_adam(o, decoupled, blocks)
    return _fused(fqt.adam_update.default, ("adam_m", "adam_v"), *o.betas, o.eps, o.weight_decay, decoupled)


_CODED = "adam_m_scale"
"""A kind of state that only moments in 8 bits have."""
_LEAST_CODED = 4096
"""Number of elements of the smallest parameter whose moments are kept in 8 bits: what others take is not worth it."""


def has_coded_moments(graph: TrainingGraph) -> bool:
    """Whether moments of some parameter are kept in 8 bits."""
    return any(name.startswith(f"{_CODED}/") for name in graph.state)


def _blocks(extents: list[int]) -> list[int] | None:
    """The shape of the scales of a parameter's moments in 8 bits; None where they are kept in fp32."""
    if math.prod(extents) < _LEAST_CODED:
        return None
    rows = extents[:1] if len(extents) > 1 else []
    elements = math.prod(extents[len(rows) :])
    length = block_length(elements)
    return None if length is None else [*rows, elements // length]


def _coded_adam(o: Adam, decoupled: bool, blocks: list[int]) -> Update:
    """Two ops: the random stream of the rounding, then parameter, codes and scales.

    The stream follows from the step's number alone: processes that train together have seeds of their own, and must
    round alike.
    """
    kinds: dict[str, Callable[[list[int]], list[int]]] = {
        "adam_m": list,
        "adam_v": list,
        _CODED: lambda _: blocks,
        "adam_v_scale": lambda _: blocks,
    }

    def emit(emit: Emitter, p: Operands) -> list[fx.Node]:
        key = emit(fqt.stream_key.default, p.count, p.count, p.number, ROLES["moments"])
        result = emit(
            fqt.coded_adam_update.default, p.parameter, *p.state, p.gradient, key, p.rates, p.count, p.group, *o.betas,
            o.eps, o.weight_decay, decoupled, p.every,
        )  # fmt: skip
        return [emit.item(result, i) for i in range(5)]

    return Update(kinds, emit, frozenset({"adam_m", "adam_v"}))


def _sgd(o: SGD, extents: list[int]) -> Update:
    if not o.momentum:
        return _fused(fqt.sgd_update.default, (), o.weight_decay)
    arguments = (o.momentum, o.dampening, o.nesterov, o.weight_decay)
    return _fused(fqt.sgd_momentum_update.default, ("sgd_momentum",), *arguments)


def _rmsprop(o: RMSprop, extents: list[int]) -> Update:
    if not o.momentum:
        return _fused(fqt.rmsprop_update.default, ("rmsprop_v",), o.alpha, o.eps, o.weight_decay)
    moments, arguments = ("rmsprop_v", "rmsprop_momentum"), (o.alpha, o.eps, o.momentum, o.weight_decay)
    return _fused(fqt.rmsprop_momentum_update.default, moments, *arguments)


def _lion(o: Lion, extents: list[int]) -> Update:
    return _fused(fqt.lion_update.default, ("lion_m",), *o.betas, o.weight_decay)


def _adadelta(o: Adadelta, extents: list[int]) -> Update:
    moments = ("adadelta_v", "adadelta_u")
    return _fused(fqt.adadelta_update.default, moments, o.rho, o.eps, o.weight_decay)


def _adagrad(o: Adagrad, extents: list[int]) -> Update:
    arguments = (o.lr_decay, o.initial_accumulator_value, o.eps, o.weight_decay)
    return _fused(fqt.adagrad_update.default, ("adagrad_sum",), *arguments)


def _radam(o: RAdam, extents: list[int]) -> Update:
    arguments = (*o.betas, o.eps, o.weight_decay, o.decoupled_weight_decay)
    return _fused(fqt.radam_update.default, ("radam_m", "radam_v"), *arguments)


def _nadam(optimizer: NAdam, extents: list[int]) -> Update:
    """Two ops: the scalar that corrects the mean, then the parameter and its moments."""
    kinds: dict[str, Callable[[list[int]], list[int]]] = {
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

    return Update(kinds, emit)


_UPDATES: Mapping[type[Optimizer], Callable[[Any, list[int]], Update]] = {
    Adam: _adam,
    AdamW: _adam,
    SGD: _sgd,
    RMSprop: _rmsprop,
    Lion: _lion,
    Adafactor: lambda o, extents: adafactor_update(o, min(len(extents), 2)),
    Adadelta: _adadelta,
    Adagrad: _adagrad,
    RAdam: _radam,
    NAdam: _nadam,
}


def update_of(optimizer: Optimizer, path: str, extents: list[int]) -> Update:
    """The update that ``optimizer`` makes of the parameter of this name and shape."""
    own = optimizer.for_parameter(path, len(extents))
    return _UPDATES[type(optimizer)](own, extents)


def zero_state(optimizer: Optimizer, path: str, parameter: Tensor) -> dict[str, Tensor]:
    """What ``optimizer`` keeps beside the parameter ``path``, by name, before the first step."""
    extents = list(parameter.shape)
    update = update_of(optimizer, path, extents)
    return {
        f"{kind}/{path}": parameter.new_zeros(shape_of(extents), dtype=torch.uint8 if kind in update.codes else None)
        for kind, shape_of in update.extents.items()
    }
