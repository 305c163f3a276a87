"""Compile options as a person writes them: flat names, as on the command line, in ``compile_options()`` or in Python.

``{"optimizer": "sgd", "lr": 0.1, "grad_bits": 4}`` becomes a ``CompileOptions`` with an ``SGD(lr=0.1)`` in it;
``{"groups": {"features.*": 1e-5}}`` gives parameters that match the glob a learning rate of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import SGD, Adam, AdamW, Optimizer, ParameterGroup
from fqt_deploy.core.options import CompileOptions

OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD}
"""Optimizers by the name that ``--optimizer`` takes."""

HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "betas", "eps", "nesterov", "groups")
"""Settings that belong to the optimizer."""

_FIELDS = tuple(field.name for field in dataclasses.fields(CompileOptions))
_PATHS = {"dump_ir": "folder", "tuning_log": "file"}
_SEQUENCES = ("include", "exclude", "print_after")


def merge_settings(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``given`` on the command line over those of the model file.

    Naming an optimizer drops the file's hyperparameters: a learning rate for Adam is none for SGD.
    """
    kept = dict(file)
    if "optimizer" in given and given["optimizer"] != file.get("optimizer"):
        kept = {name: value for name, value in kept.items() if name not in HYPERPARAMETERS}
    return {**kept, **given}


def options_of(settings: Mapping[str, Any]) -> CompileOptions:
    """Build and check the options; what is absent takes its default.

    Raises:
        FqtError: FQT202 for an unknown name or a value that is not one of its values.
    """
    unknown = [name for name in settings if name not in _FIELDS and name not in HYPERPARAMETERS]
    if unknown:
        raise FqtError(
            f"unknown option(s): {', '.join(unknown)}",
            code="FQT202",
            hint=f"options are {', '.join((*_FIELDS, *HYPERPARAMETERS))}",
        )
    fields = {name: value for name, value in settings.items() if name in _FIELDS}
    for name in _SEQUENCES:
        if name in fields:
            fields[name] = _strings(name, fields[name])
    for name, kind in _PATHS.items():
        if fields.get(name) is not None:
            if not isinstance(fields[name], str | Path):
                raise FqtError(f"{name} is {fields[name]!r}; it must be a {kind}", code="FQT202")
            fields[name] = Path(fields[name])
    fields["optimizer"] = _optimizer(settings)
    return CompileOptions(**fields)


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """One string, or several, as a tuple."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, (tuple, list)) or not all(isinstance(item, str) for item in values):
        raise FqtError(f"{name} is {value!r}; it must be a string or a list of strings", code="FQT202")
    return tuple(values)


def _optimizer(settings: Mapping[str, Any]) -> Optimizer:
    chosen = settings.get("optimizer", "adam")
    given = {name: settings[name] for name in HYPERPARAMETERS if name in settings}
    if isinstance(given.get("groups"), Mapping):
        given["groups"] = tuple(ParameterGroup(pattern, lr) for pattern, lr in given["groups"].items())
    if isinstance(chosen, str) and chosen in OPTIMIZERS:
        kind = OPTIMIZERS[chosen]
    elif isinstance(chosen, Optimizer):
        kind = type(chosen)
    else:
        raise FqtError(
            f"optimizer {chosen!r} is unknown",
            code="FQT202",
            hint=f"use one of {', '.join(OPTIMIZERS)}, or fqt_deploy.Adam, AdamW or SGD",
        )
    accepted = {field.name for field in dataclasses.fields(kind)}
    for name in given:
        if name not in accepted:
            raise FqtError(f"{kind.__name__} has no {name}", code="FQT202", hint=f"it takes {', '.join(accepted)}")
    return kind(**given) if isinstance(chosen, str) else dataclasses.replace(chosen, **given)
