"""Optimizers of ``torch.optim``: translated for the compiled step, which then follows their learning rates."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop
from fqt_deploy.core.parameter_group import ParameterGroup

_TRANSLATED: Mapping[type[torch.optim.Optimizer], type[Optimizer]] = {
    torch.optim.SGD: SGD,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.RMSprop: RMSprop,
    torch.optim.Adafactor: Adafactor,
    torch.optim.Adadelta: Adadelta,
    torch.optim.Adagrad: Adagrad,
    torch.optim.RAdam: RAdam,
    torch.optim.NAdam: NAdam,
}
_HYPERPARAMETERS: Mapping[type[Optimizer], tuple[str, ...]] = {
    SGD: ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
    Adam: ("lr", "betas", "eps", "weight_decay"),
    AdamW: ("lr", "betas", "eps", "weight_decay"),
    RMSprop: ("lr", "alpha", "eps", "weight_decay", "momentum"),
    Adafactor: ("lr", "beta2_decay", "eps", "scale_floor", "update_bound", "weight_decay"),
    Adadelta: ("lr", "rho", "eps", "weight_decay"),
    Adagrad: ("lr", "lr_decay", "initial_accumulator_value", "eps", "weight_decay"),
    RAdam: ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay"),
    NAdam: ("lr", "betas", "eps", "weight_decay", "momentum_decay", "decoupled_weight_decay"),
}
_OF_A_GROUP = ("lr", "weight_decay", "betas", "eps", "momentum")
"""What each group may have of its own; the others are one for all groups."""
_NEVER = ("amsgrad", "maximize", "centered", "differentiable")
"""Options that change the update and have no compiled form."""


def translate(optimizer: torch.optim.Optimizer, model: nn.Module) -> Optimizer:
    """The compiled optimizer that updates the parameters of ``model`` as ``optimizer`` would.

    Its groups are those of ``optimizer``, in order; the first is the default.

    Raises:
        FqtError: FQT210 for another optimizer or an option that has no compiled form, for one that has taken steps,
            and unless it has exactly the trainable parameters of ``model``.
    """
    kind = _kind_of(optimizer)
    groups = optimizer.param_groups
    for name in _NEVER:
        if any(group.get(name) for group in groups):
            raise _refused(f"{name} of {type(optimizer).__name__}", "leave it out")
    if any(state.get("step") != 0 for state in optimizer.state.values()):  # Adagrad has its state from the beginning
        raise FqtError(
            "the optimizer has taken steps, and its moments are not taken over",
            code="FQT210",
            hint="pass a new optimizer of the same parameters",
        )
    names = _names_by_group(groups, model)
    if kind is Adafactor:
        groups = [_spelled_out(group) for group in groups]
    own = [{n: _plain(group[n]) for n in _HYPERPARAMETERS[kind]} for group in groups]
    for name in _HYPERPARAMETERS[kind]:
        if name not in _OF_A_GROUP and any(values[name] != own[0][name] for values in own):
            raise _refused(f"another {name} for some parameter groups", "give all groups the same")
    translated = kind(
        **own[0],
        groups=tuple(
            ParameterGroup(",".join(map(_exactly, members)), **{n: values[n] for n in _OF_A_GROUP if n in values})
            for members, values in zip(names[1:], own[1:], strict=True)
        ),
    )
    for index, members in enumerate(names):
        if wrong := [name for name in members if translated.group_of(name) != index]:
            raise FqtError(f"the name of parameter {wrong[0]!r} matches another group", code="FQT210")
    return translated


def _spelled_out(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of ``torch.optim.Adafactor`` with the names that ours has; FQT210 for what it factors in another way."""
    if any(parameter.dim() > 2 and parameter.requires_grad for parameter in group["params"]):
        raise _refused(
            "torch.optim.Adafactor with parameters of more than two axes",
            "use fqt_deploy.Adafactor, which keeps one row and one column for the weight of a convolution; PyTorch "
            "keeps them for each of its kernels",
        )
    smallest, floor = group["eps"]
    eps = 2.0**-23 if smallest is None else smallest
    return {**group, "eps": eps, "scale_floor": floor, "update_bound": group["d"]}


def _kind_of(optimizer: torch.optim.Optimizer) -> type[Optimizer]:
    kind = _TRANSLATED.get(type(optimizer))
    if kind is None:
        known = ", ".join(f"torch.optim.{cls.__name__}" for cls in _TRANSLATED)
        raise _refused(
            f"{type(optimizer).__module__}.{type(optimizer).__name__}",
            f"use one of {known}, fqt_deploy.Lion or fqt_deploy.Adafactor; their subclasses may do anything else, and "
            "are refused",
        )
    decoupled = {bool(group.get("decoupled_weight_decay")) for group in optimizer.param_groups}
    if kind is Adam and decoupled == {True}:
        return AdamW
    if kind is Adam and True in decoupled:
        raise _refused("decoupled_weight_decay for some parameter groups alone", "use torch.optim.AdamW for all")
    return kind


def _names_by_group(groups: Sequence[Mapping[str, Any]], model: nn.Module) -> list[list[str]]:
    """The names of the trainable parameters of each group; FQT210 unless they are those of ``model``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[(id(p), p) for p in group["params"]] for group in groups]
    if any(key not in names for members in found for key, _ in members):
        raise FqtError(
            "the optimizer has a parameter that the model has not",
            code="FQT210",
            hint="make it from the parameters of the model that is compiled, after the last change to the model",
        )
    given = {key for members in found for key, _ in members}
    if left := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in given]:
        raise FqtError(
            f"the optimizer leaves out {len(left)} trainable parameter(s): {', '.join(left[:8])}",
            code="FQT210",
            hint="put them into a group, or freeze them: parameter.requires_grad_(False)",
        )
    return [[names[key] for key, p in members if p.requires_grad] for members in found]


def _exactly(name: str) -> str:
    """A glob that the parameter's name matches; a comma would separate two globs."""
    return glob.escape(name).replace(",", "?")


def _plain(value: Any) -> Any:
    """The hyperparameter as plain numbers: a learning rate may be a tensor."""
    if isinstance(value, torch.Tensor):
        return float(value)
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def _refused(what: str, hint: str) -> FqtError:
    return FqtError(f"{what} cannot be compiled", code="FQT210", hint=hint)


class ScheduledRates(torch.optim.Optimizer):
    """The parameter groups of a compiled step, for ``torch.optim.lr_scheduler`` to write learning rates to.

    Args:
        groups: the groups as the manifest has them, with pattern and learning rate.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        given = [{"params": [nn.Parameter(torch.zeros(()))], **group} for group in groups]
        super().__init__(given, {"lr": 0.0})


class FollowedOptimizer:
    """Reads the learning rates of a PyTorch optimizer, and notices what a compiled step cannot follow.

    Args:
        optimizer: the optimizer, whose groups are those of the step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._compiled = [self._fixed(group) for group in optimizer.param_groups]

    @staticmethod
    def _fixed(group: Mapping[str, Any]) -> dict[str, Any]:
        own = dict.fromkeys(name for names in _HYPERPARAMETERS.values() for name in names)
        return {name: _plain(group[name]) for name in (*own, "d") if name in group and name != "lr"}

    def rates(self) -> list[float]:
        """The learning rates of now.

        Raises:
            FqtError: FQT210 if anything else has changed: it is compiled in.
        """
        groups = self.optimizer.param_groups
        if len(groups) != len(self._compiled):
            raise FqtError(
                f"the optimizer has {len(groups)} parameter groups, {len(self._compiled)} were compiled",
                code="FQT210",
                hint="add groups before fqt_deploy.compile",
            )
        for group, compiled in zip(groups, self._compiled, strict=True):
            for name, value in compiled.items():
                if group[name] != value and _plain(group[name]) != value:
                    raise FqtError(
                        f"{name} was {value} when the step was compiled, and is {_plain(group[name])} now",
                        code="FQT210",
                        hint="only learning rates can change; for OneCycleLR and CyclicLR: cycle_momentum=False",
                    )
        return [float(group["lr"]) for group in groups]

    def set_rates(self, rates: Sequence[float]) -> None:
        """Write the learning rates of the step into the groups."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def note_step(self) -> None:
        """Let schedulers know that a step was taken: they warn of those that come before the first."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # as Optimizer.step would
