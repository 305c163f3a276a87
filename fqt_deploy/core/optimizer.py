"""Optimizers that can be compiled into the training step, with the meaning they have in ``torch.optim``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import OPTIMIZER, check_options, option, options_in
from fqt_deploy.core.option_kinds import Kind, number, string

OPTIMIZERS: dict[str, type[Optimizer]] = {}
"""Every optimizer by the name that its class declares, in the order of declaration."""


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
        for what, given, kind in (
            ("the pattern of a parameter group", self.pattern, string()),
            (f"the learning rate of group {self.pattern!r}", self.lr, number(float, 0)),
        ):
            try:
                kind.accept(given)
            except ValueError:
                raise FqtError(f"{what} is {given!r}; it must be {kind.wanted}", code="FQT202") from None


def _groups() -> Kind:
    """Parameter groups, also as a dict from globs to learning rates, or as texts ``GLOB=NUMBER``."""

    def accept(value: Any) -> tuple[ParameterGroup, ...]:
        if isinstance(value, Mapping):
            return tuple(ParameterGroup(pattern, lr) for pattern, lr in value.items())
        if not isinstance(value, tuple | list) or not all(isinstance(group, ParameterGroup) for group in value):
            raise ValueError
        return tuple(value)

    def read(text: str) -> Any:
        pattern, equals, lr = text.rpartition("=")
        return ParameterGroup(pattern, number(float).read(lr)) if equals else text

    wanted = "a dict from globs to learning rates, or a list of ParameterGroup"
    return Kind("GLOB=NUMBER", wanted, accept, read, repeatable=True)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The base of all optimizers; each field is an option.

    A subclass names itself, ``class Adam(Optimizer, name="adam")``, and is in ``OPTIMIZERS`` from then on: the choices
    of ``--optimizer``, the settings and the help come from there.

    Attributes:
        name: the name as ``--optimizer`` takes it and the manifest stores it.
    """

    name: ClassVar[str]

    lr: float = option(
        MISSING,
        "Begin with this learning rate; the compiled step takes it as an input too.",
        section=OPTIMIZER,
        minimum=0,
    )
    weight_decay: float = option(
        0.0, "Add this factor's L2 penalty; with adamw, decay parameters by it directly.", section=OPTIMIZER, minimum=0
    )
    groups: tuple[ParameterGroup, ...] = option(
        (),
        "Begin with this learning rate for parameters that match; the first match counts. Repeatable.",
        section=OPTIMIZER,
        kind=_groups(),
        flags=("--group",),
    )

    def __init_subclass__(cls, name: str, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.name = name
        OPTIMIZERS[name] = cls

    def __post_init__(self) -> None:
        check_options(self)

    def group_of(self, parameter: str) -> int:
        """Index of the learning rate of ``parameter``: 0 by default, else 1 + the first matching group."""
        matches = (i for i, group in enumerate(self.groups, start=1) if fnmatchcase(parameter, group.pattern))
        return next(matches, 0)

    def lrs(self) -> tuple[float, ...]:
        """The initial learning rates: the default, then one for each group."""
        return (self.lr, *(group.lr for group in self.groups))

    def describe(self) -> dict[str, Any]:
        """The optimizer as the manifest stores it: name, hyperparameters, and all groups with the default first."""
        values = {name: getattr(self, name) for name in options_in(type(self)) if name not in ("lr", "groups")}
        hyperparameters = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        groups = [{"pattern": "*", "lr": self.lr}, *(asdict(group) for group in self.groups)]
        return {"name": self.name, "hyperparameters": hyperparameters, "groups": groups}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer, name="adam"):
    """Adam (Kingma and Ba, 2015); ``weight_decay`` is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = option(
        (0.9, 0.999),
        "Average the gradient and its square with these decay rates.",
        section=OPTIMIZER,
        minimum=0,
        below=1,
    )
    eps: float = option(1e-8, "Add this to the denominator.", section=OPTIMIZER, minimum=0)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam, name="adamw"):
    """Adam whose weight decay acts on the parameter itself (Loshchilov and Hutter, 2019)."""

    weight_decay: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent."""

    lr: float = 1e-2
    momentum: float = option(0.0, "Keep a velocity with this decay rate; 0 keeps none.", section=OPTIMIZER, minimum=0)
    nesterov: bool = option(False, "Look ahead along the velocity.", section=OPTIMIZER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0.0:
            raise FqtError("nesterov needs a momentum above 0", code="FQT202")


def optimizer_kind() -> Kind:
    """An optimizer, or the name of one, which then has its default hyperparameters."""

    def accept(value: Any) -> Optimizer:
        if isinstance(value, str) and value in OPTIMIZERS:
            return OPTIMIZERS[value]()
        if not isinstance(value, Optimizer):
            raise ValueError
        return value

    names = tuple(OPTIMIZERS)
    wanted = f"one of {', '.join(names)}, or an instance of {', '.join(c.__name__ for c in OPTIMIZERS.values())}"
    return Kind(f"[{'|'.join(names)}]", wanted, accept, choices=names)
