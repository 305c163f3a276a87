"""Optimizers that can be compiled into the training step, with the meaning they have in ``torch.optim``."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, replace
from typing import Any, ClassVar, Literal, Self

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import OPTIMIZER, check_options, option, options_in
from fqt_deploy.core.option_kinds import Kind
from fqt_deploy.core.parameter_group import ParameterGroup, groups_kind, matches_any

OPTIMIZERS: dict[str, type[Optimizer]] = {}
"""Every optimizer by the name that its class declares, in the order of declaration."""

_LATER = ("moment_bits",)
"""Hyperparameters that older versions did not know."""

# What several optimizers have, each with a default of its own.
_BETAS = "Average the gradient and its square with these decay rates; lion, the gradient for the step and for the next."
_EPS = "Add this to the denominator; adadelta, to both mean squares; adafactor, bound it by this from below."
_DECOUPLED = "Decay parameters by the weight decay directly."
_MOMENTUM = "Keep a velocity with this decay rate; 0 keeps none."


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
        0.0,
        "Add this factor's L2 penalty; with adamw, lion and adafactor, decay parameters by it directly.",
        section=OPTIMIZER,
        minimum=0,
    )
    groups: tuple[ParameterGroup, ...] = option(
        (),
        "Begin with this learning rate for parameters that match; the first match counts. GLOB=lr:NUMBER,"
        "weight_decay:NUMBER gives a decay too. Repeatable.",
        section=OPTIMIZER,
        kind=groups_kind(),
        flags=("--group",),
    )
    decay: Literal["all", "matrices"] = option(
        "all",
        "Decay every parameter (all), or only those of two or more axes (matrices): no biases, no scales of norms.",
        section=OPTIMIZER,
    )
    no_decay: tuple[str, ...] = option(
        (),
        "Do not decay parameters that match the glob. Repeatable.",
        section=OPTIMIZER,
        metavar="GLOB",
        default_text="none",
    )
    clip_norm: float | None = option(
        None,
        "Scale all gradients down together where their norm is above this.",
        section=OPTIMIZER,
        minimum=0,
        default_text="off",
    )
    clip_value: float | None = option(
        None, "Clip each element of a gradient to this size.", section=OPTIMIZER, minimum=0, default_text="off"
    )
    accumulate: int = option(
        1, "Update once for this many batches, by the mean of their gradients.", section=OPTIMIZER, minimum=1
    )
    ema: float | None = option(
        None,
        "Keep an average of the parameters over the updates, with this decay rate.",
        section=OPTIMIZER,
        minimum=0,
        below=1,
        default_text="off",
    )
    metrics: tuple[Literal["grad_norm", "param_norm"], ...] = option(
        (),
        "Keep this number of each step: the norm of all gradients before clipping (grad_norm), or of all trained "
        "parameters before the update (param_norm). Repeatable.",
        section=OPTIMIZER,
        default_text="none",
    )

    def __init_subclass__(cls, name: str, **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.name = name
        OPTIMIZERS[name] = cls

    def __post_init__(self) -> None:
        check_options(self)
        for group in self.groups:
            if unknown := [name for name in group.own() if name not in options_in(type(self))]:
                raise FqtError(f"optimizer {self.name} has no {unknown[0]} for group {group.pattern!r}", code="FQT202")

    def group_of(self, parameter: str) -> int:
        """Index of the learning rate of ``parameter``: 0 by default, else 1 + the first matching group."""
        return next((i for i, group in enumerate(self.groups, start=1) if group.matches(parameter)), 0)

    def for_parameter(self, parameter: str, axes: int) -> Self:
        """The optimizer with the hyperparameters that the parameter of this name and number of axes has."""
        index = self.group_of(parameter)
        own = self.groups[index - 1].own() if index else {}
        if matches_any(parameter, self.no_decay) or (self.decay == "matrices" and axes < 2):
            own["weight_decay"] = 0.0
        return replace(self, groups=(), **own)

    def lrs(self) -> tuple[float, ...]:
        """The initial learning rates: the default, then one for each group."""
        return (self.lr, *(self.lr if group.lr is None else group.lr for group in self.groups))

    def describe(self) -> dict[str, Any]:
        """The optimizer as the manifest stores it: name, hyperparameters, and all groups with the default first.

        What every optimizer has beside its weight decay is left out where it is off, and what came later, so that the
        checkpoints of older artifacts fit.
        """
        common = options_in(Optimizer)
        values = {name: getattr(self, name) for name in options_in(type(self)) if name not in ("lr", "groups")}
        hyperparameters = {
            name: _as_json(value)
            for name, value in values.items()
            if name not in {*common, *_LATER} or name == "weight_decay" or value != options_in(type(self))[name].default
        }
        groups: list[dict[str, Any]] = [{"pattern": "*", "lr": self.lr}]
        for group, lr in zip(self.groups, self.lrs()[1:], strict=True):
            own = {name: _as_json(value) for name, value in group.own().items()}
            groups.append({"pattern": group.pattern, **own, "lr": lr})
        return {"name": self.name, "hyperparameters": hyperparameters, "groups": groups}


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer, name="adam"):
    """Adam (Kingma and Ba, 2015); ``weight_decay`` is added to the gradient."""

    lr: float = 1e-3
    betas: tuple[float, float] = option((0.9, 0.999), _BETAS, section=OPTIMIZER, minimum=0, below=1)
    eps: float = option(1e-8, _EPS, section=OPTIMIZER, minimum=0)
    moment_bits: Literal[32, 8] = option(
        32,
        "Keep moments in fp32 (32), or those of large parameters in a quarter of the bytes (8).",
        section=OPTIMIZER,
    )


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam, name="adamw"):
    """Adam whose weight decay acts on the parameter itself (Loshchilov and Hutter, 2019)."""

    weight_decay: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer, name="sgd"):
    """Stochastic gradient descent."""

    lr: float = 1e-2
    momentum: float = option(0.0, _MOMENTUM, section=OPTIMIZER, minimum=0)
    dampening: float = option(
        0.0, "Add the gradient to the velocity without this share of it.", section=OPTIMIZER, minimum=0
    )
    nesterov: bool = option(False, "Look ahead along the velocity.", section=OPTIMIZER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0.0:
            raise FqtError("nesterov needs a momentum above 0", code="FQT202")
        if self.nesterov and self.dampening:
            raise FqtError("nesterov takes no dampening", code="FQT202")


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer, name="rmsprop"):
    """RMSprop (Hinton, 2012), as ``torch.optim.RMSprop``, not centered."""

    lr: float = 1e-2
    alpha: float = option(
        0.99, "Average the square of the gradient with this decay rate.", section=OPTIMIZER, minimum=0, below=1
    )
    eps: float = option(1e-8, _EPS, section=OPTIMIZER, minimum=0)
    momentum: float = option(0.0, _MOMENTUM, section=OPTIMIZER, minimum=0)


@dataclass(frozen=True, kw_only=True)
class Lion(Optimizer, name="lion"):
    """Lion (Chen et al., 2023): steps of equal size along the sign of a mean; ``weight_decay`` is decoupled."""

    lr: float = 1e-4
    betas: tuple[float, float] = option((0.9, 0.99), _BETAS, section=OPTIMIZER, minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class Adafactor(Optimizer, name="adafactor"):
    """Adafactor (Shazeer and Stern, 2018), as ``torch.optim.Adafactor``; ``weight_decay`` is decoupled.

    The variance of a matrix is kept as one number for each row and one for each column. A parameter of more than two
    axes is the matrix of its first axis and all others. PyTorch has a matrix of the last two axes for each of the
    others: of the variance of a 3x3 convolution that leaves two thirds.
    """

    lr: float = 1e-2
    beta2_decay: float = option(
        -0.8, "Average squares with a share of this power of the update's number.", section=OPTIMIZER
    )
    eps: float = option(2.0**-23, _EPS, section=OPTIMIZER, minimum=0)
    scale_floor: float = option(
        1e-3, "Take a parameter to have at least this size: updates are relative to it.", section=OPTIMIZER, minimum=0
    )
    update_bound: float = option(
        1.0, "Scale an update down where its root mean square is above this.", section=OPTIMIZER, minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta2_decay > 0:
            raise FqtError(f"beta2_decay is {self.beta2_decay}; it must be at most 0", code="FQT202")


@dataclass(frozen=True, kw_only=True)
class Adadelta(Optimizer, name="adadelta"):
    """Adadelta (Zeiler, 2012), as ``torch.optim.Adadelta``."""

    lr: float = 1.0
    rho: float = option(
        0.9,
        "Average the squares of gradients and of updates with this decay rate.",
        section=OPTIMIZER,
        minimum=0,
        below=1,
    )
    eps: float = option(1e-6, _EPS, section=OPTIMIZER, minimum=0)


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimizer, name="adagrad"):
    """Adagrad (Duchi, Hazan and Singer, 2011), as ``torch.optim.Adagrad``."""

    lr: float = 1e-2
    lr_decay: float = option(
        0.0, "Divide the learning rate by 1 and this times the number of earlier updates.", section=OPTIMIZER, minimum=0
    )
    initial_accumulator_value: float = option(
        0.0, "Begin the sums of squares with this number.", section=OPTIMIZER, minimum=0
    )
    eps: float = option(1e-10, _EPS, section=OPTIMIZER, minimum=0)


@dataclass(frozen=True, kw_only=True)
class RAdam(Optimizer, name="radam"):
    """RAdam (Liu et al., 2020), as ``torch.optim.RAdam``: Adam that divides by no variance before it is known."""

    lr: float = 1e-3
    betas: tuple[float, float] = option((0.9, 0.999), _BETAS, section=OPTIMIZER, minimum=0, below=1)
    eps: float = option(1e-8, _EPS, section=OPTIMIZER, minimum=0)
    decoupled_weight_decay: bool = option(False, _DECOUPLED, section=OPTIMIZER)


@dataclass(frozen=True, kw_only=True)
class NAdam(Optimizer, name="nadam"):
    """NAdam (Dozat, 2016), as ``torch.optim.NAdam``: Adam that looks ahead along its mean."""

    lr: float = 2e-3
    betas: tuple[float, float] = option((0.9, 0.999), _BETAS, section=OPTIMIZER, minimum=0, below=1)
    eps: float = option(1e-8, _EPS, section=OPTIMIZER, minimum=0)
    momentum_decay: float = option(
        4e-3,
        "Let the momentum grow from half of the first decay rate to all of it at this speed.",
        section=OPTIMIZER,
        minimum=0,
    )
    decoupled_weight_decay: bool = option(False, _DECOUPLED, section=OPTIMIZER)


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


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
