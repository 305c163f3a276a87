"""Parameter groups: parameters with hyperparameters of their own, chosen by globs over their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option_kinds import Kind, number, pair, string

_DECAY_RATE = number(float, 0, 1)
_KINDS: dict[str, Kind] = {
    "lr": number(float, 0),
    "weight_decay": number(float, 0),
    "betas": pair(_DECAY_RATE),
    "eps": number(float, 0),
    "momentum": number(float, 0),
}
"""What a group may have of its own, with the values that each takes."""
_SAID = {"lr": "learning rate", "weight_decay": "weight decay"}


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with hyperparameters of their own; what is None is as the optimizer has it.

    Attributes:
        pattern: glob over parameter names, such as ``features.0.*``; several with commas between them.
        lr: initial learning rate.
        weight_decay: factor of the decay.
        betas: decay rates of the moments, for optimizers that have them.
        eps: what is added to the denominator, likewise.
        momentum: decay rate of the velocity, likewise.
    """

    pattern: str
    lr: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        _accept("the pattern of a parameter group", self.pattern, string())
        for name, value in self.own().items():
            accepted = _accept(f"the {_SAID.get(name, name)} of group {self.pattern!r}", value, _KINDS[name])
            object.__setattr__(self, name, accepted)

    def own(self) -> dict[str, Any]:
        """The hyperparameters that the group has of its own, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pattern"}
        return {name: value for name, value in values.items() if value is not None}

    def matches(self, parameter: str) -> bool:
        """Whether the parameter of this name is in the group."""
        return matches_any(parameter, self.pattern.split(","))


def matches_any(parameter: str, globs: Iterable[str]) -> bool:
    """Whether one of ``globs`` matches the parameter's name."""
    return any(fnmatchcase(parameter, glob.strip()) for glob in globs)


def groups_kind() -> Kind:
    """Parameter groups; also a dict from globs to learning rates or dicts, or texts ``GLOB=NUMBER``."""

    def accept(value: Any) -> tuple[ParameterGroup, ...]:
        if isinstance(value, Mapping):
            return tuple(_of_item(pattern, own) for pattern, own in value.items())
        if not isinstance(value, tuple | list) or not all(isinstance(group, ParameterGroup) for group in value):
            raise ValueError
        return tuple(value)

    def read(text: str) -> Any:
        pattern, equals, own = text.rpartition("=")
        if not equals:
            return text
        if ":" not in own:
            return ParameterGroup(pattern, number(float).read(own))
        pairs = [item.partition(":") for item in own.split(",")]
        return _of_item(pattern, {name.strip(): number(float).read(value) for name, _, value in pairs})

    wanted = "a dict from globs to learning rates, or a list of ParameterGroup"
    return Kind("GLOB=NUMBER", wanted, accept, read, repeatable=True)


def _of_item(pattern: Any, own: Any) -> ParameterGroup:
    if not isinstance(own, Mapping):
        return ParameterGroup(pattern, own)
    if unknown := [name for name in own if name not in _KINDS]:
        raise FqtError(
            f"group {pattern!r} has no {unknown[0]}", code="FQT202", hint=f"a group may have {', '.join(_KINDS)}"
        )
    return ParameterGroup(pattern, **own)


def _accept(what: str, value: Any, kind: Kind) -> Any:
    try:
        return kind.accept(value)
    except ValueError:
        raise FqtError(f"{what} is {value!r}; it must be {kind.wanted}", code="FQT202") from None
