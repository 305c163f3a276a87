"""Compile options as a person writes them: flat names, as on the command line, in ``compile_options()`` or in Python.

``{"optimizer": "sgd", "lr": 0.1, "target": "cuda", "tf32": True}`` becomes a ``CompileOptions`` with an ``SGD(lr=0.1)``
and ``CudaOptions(tf32=True)`` in it; ``{"groups": {"features.*": 1e-5}}`` gives parameters that match the glob a
learning rate of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import OPTIMIZERS, Optimizer
from fqt_deploy.core.option import Option, merge_owners, options_in
from fqt_deploy.core.options import CompileOptions, TargetOptions
from fqt_deploy.core.preset import PRESET_OPTIONS, without_preset
from fqt_deploy.targets.registry import TARGETS, target_entry


def alternatives() -> dict[str, dict[str, type]]:
    """The options whose alternatives have options of their own, with the class of these by the alternative's name."""
    return {"optimizer": {**OPTIMIZERS}, "target": {name: entry.options for name, entry in TARGETS.items()}}


def all_settings() -> dict[str, Option]:
    """Every setting by name: ``preset``, and ``CompileOptions``' own, each followed by what its alternatives have."""
    choices = alternatives()
    found: dict[str, Option] = dict(PRESET_OPTIONS)
    for name, declared in options_in(CompileOptions).items():
        if name in choices:
            names = tuple(choices[name])
            kind = dataclasses.replace(declared.kind, metavar=f"[{'|'.join(names)}]", choices=names)
            found |= {name: dataclasses.replace(declared, kind=kind), **merge_owners(choices[name])}
        else:
            found[name] = declared
    return found


def merge_settings(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``given`` on the command line over those of the model file.

    Naming another optimizer or target drops what the file says of its own: a learning rate for Adam is none for SGD.
    A preset on the command line counts before all that the file says.
    """
    given = without_preset(given)
    dropped: set[str] = set()
    for choice, classes in alternatives().items():
        if choice in given and given[choice] != file.get(choice):
            dropped |= merge_owners(classes).keys()
    return {**{name: value for name, value in file.items() if name not in dropped}, **given}


def options_of(settings: Mapping[str, Any]) -> CompileOptions:
    """Build and check the options; what is absent takes its default, or what the preset says.

    Raises:
        FqtError: FQT202 for an unknown name, a value that is not one of its values, or an option that the chosen target
            or optimizer does not have; FQT401 for an unknown target.
    """
    known = all_settings()
    if unknown := [name for name in settings if name not in known]:
        hint = f"options are {', '.join(known)}"
        raise FqtError(f"unknown option(s): {', '.join(map(str, unknown))}", code="FQT202", hint=hint)
    settings = without_preset(settings)
    own = {name: value for name, value in settings.items() if name in options_in(CompileOptions)}
    own["target_options"] = _target_options(settings)
    return CompileOptions(**{**own, "optimizer": _optimizer(settings)})


def _target_options(settings: Mapping[str, Any]) -> TargetOptions:
    name = settings.get("target", CompileOptions.target)
    return target_entry(name).options(**_own(settings, "target", str(name)))


def _optimizer(settings: Mapping[str, Any]) -> Optimizer:
    chosen: Optimizer = options_in(CompileOptions)["optimizer"].accept(
        settings.get("optimizer", CompileOptions.optimizer)
    )
    given = _own(settings, "optimizer", chosen.name)
    return dataclasses.replace(chosen, **given)


def _own(settings: Mapping[str, Any], choice: str, name: str) -> dict[str, Any]:
    """The settings that alternative ``name`` of ``choice`` has; FQT202 for one that only others have."""
    classes = alternatives()[choice]
    own = options_in(classes[name])
    others = [o for o in merge_owners(classes) if o not in own and settings.get(o) is not None]
    if others:
        hint = f"it has {', '.join(own)}" if own else "it has no options"
        raise FqtError(f"{choice} {name} has no {others[0]}", code="FQT202", hint=hint)
    return {option: settings[option] for option in own if option in settings}
