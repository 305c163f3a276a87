"""Optimizers that can be compiled into the training step, with the meaning they have in ``torch.optim``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from fqt_deploy.core.diagnostics import FqtError


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate of their own.

    Attributes:
        pattern: glob over parameter names, such as ``features.0.*``.
        lr: initial learning rate.
    """

    pattern: str
    lr: float

    def __post_init__(self) -> None:
        if not self.pattern or not isinstance(self.pattern, str):
            raise FqtError(f"the pattern of a parameter group is {self.pattern!r}; it is a glob", code="FQT202")
        _require(_is_nonnegative(self.lr), f"the learning rate of group {self.pattern!r}", self.lr, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """What all optimizers have in common.

    Attributes:
        lr: initial learning rate of the parameters in no group.
        weight_decay: factor of the L2 penalty (``AdamW``: of the decoupled decay).
        groups: parameters with their own learning rate; the first matching group counts.
    """

    lr: float
    weight_decay: float = 0.0
    groups: tuple[ParameterGroup, ...] = ()

    def __post_init__(self) -> None:
        _require(_is_nonnegative(self.lr), "lr", self.lr, "at least 0")
        _require(_is_nonnegative(self.weight_decay), "weight_decay", self.weight_decay, "at least 0")
        _require(
            isinstance(self.groups, tuple) and all(isinstance(group, ParameterGroup) for group in self.groups),
            "groups",
            self.groups,
            "a tuple of ParameterGroup",
        )

    def group_of(self, parameter: str) -> int:
        """Index of the learning rate of ``parameter``: 0 by default, else 1 + the first matching group."""
        matches = (i for i, group in enumerate(self.groups, start=1) if fnmatchcase(parameter, group.pattern))
        return next(matches, 0)

    def lrs(self) -> tuple[float, ...]:
        """Initial learning rates: the default, then one for each group."""
        return (self.lr, *(group.lr for group in self.groups))

    def describe(self) -> dict[str, Any]:
        """This optimizer as the manifest stores it: name, hyperparameters, and all groups with the default first."""
        hyperparameters = {k: v for k, v in asdict(self).items() if k not in ("lr", "groups")}
        if "betas" in hyperparameters:
            hyperparameters["betas"] = list(hyperparameters["betas"])
        groups = [{"pattern": "*", "lr": self.lr}, *(asdict(group) for group in self.groups)]
        return {"name": type(self).__name__.lower(), "hyperparameters": hyperparameters, "groups": groups}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015); ``weight_decay`` is added to the gradient.

    Attributes:
        betas: decay rates of the first and second moment.
        eps: added to the denominator.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            isinstance(self.betas, (tuple, list))
            and len(self.betas) == 2
            and all(_is_number(beta) and 0.0 <= beta < 1.0 for beta in self.betas),
            "betas",
            self.betas,
            "two numbers in [0, 1)",
        )
        _require(_is_nonnegative(self.eps), "eps", self.eps, "at least 0")


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam whose weight decay acts on the parameter itself (Loshchilov and Hutter, 2019)."""

    weight_decay: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    Attributes:
        momentum: decay rate of the velocity; 0 keeps none.
        nesterov: look ahead along the velocity.
    """

    lr: float = 1e-2
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(_is_nonnegative(self.momentum), "momentum", self.momentum, "at least 0")
        if self.nesterov and self.momentum == 0.0:
            raise FqtError("nesterov needs a momentum above 0", code="FQT202")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_nonnegative(value: Any) -> bool:
    return _is_number(value) and value >= 0.0


def _require(holds: bool, what: str, given: object, wanted: str) -> None:
    if not holds:
        raise FqtError(f"{what} is {given!r}; it must be {wanted}", code="FQT202")
