"""Load pretrained weights into a model: a state dict, or the weights of a checkpoint or an artifact."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.parameter_group import matches_any

_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           AssertionError, MemoryError, SyntaxError, struct.error, zipfile.BadZipFile)  # fmt: skip
"""The errors that torch.load and safetensors raise, by kind of damage."""
_SHOWN = 8
"""Number of names that an error lists before it counts the rest."""


_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile put in front of every name."""
_OURS = ("param/", "buffer/")
"""Prefixes of the weights in a checkpoint of a compiled step, and in an artifact's state."""


def load_weights(model: nn.Module, path: Path, *, skip: Sequence[str] = ()) -> None:
    """Copy the tensors of ``path`` into ``model``: every parameter and buffer, and nothing else.

    Args:
        model: changed in place.
        path: ``.safetensors``, or a file of ``torch.save(model.state_dict(), ...)``, read without running code.
            A checkpoint of a compiled step gives its weights; ``module.`` and ``_orig_mod.`` before all names are
            left out.
        skip: globs over names that the model keeps as they are, such as a head of another size.

    Raises:
        FqtError: FQT102 if the file cannot be read or its names and shapes are not the model's, FQT204 for a glob that
            matches nothing.
    """
    expected = model.state_dict()
    for glob in skip:
        if not any(matches_any(name, (glob,)) for name in expected):
            raise FqtError(f"no weight matches {glob!r}", code="FQT204", hint=f"the weights are: {', '.join(expected)}")
    state = {n: t for n, t in _named_as_model(_read(path), model).items() if not matches_any(n, skip)}
    expected = {name: tensor for name, tensor in expected.items() if not matches_any(name, skip)}
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "missing": [n for n in expected if n not in state and n not in counters],
        "unexpected": [n for n in state if n not in expected],
        "of another shape": [
            f"{n} {list(tensor.shape)}, the model has {list(expected[n].shape)}"
            for n, tensor in state.items()
            if n in expected and tensor.shape != expected[n].shape
        ],
    }
    found = [f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names]
    if found:
        hint = "--skip-weights 'head.*' keeps what matches as build_model() makes it"
        raise FqtError(f"{path.name} does not fit the model: {'; '.join(found)}", code="FQT102", hint=hint)
    if bad := [name for name, tensor in state.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]:
        raise FqtError(f"{path.name} holds NaN in {_listed(bad)}", code="FQT102", hint="train from better weights")
    try:
        model.load_state_dict(dict(state), strict=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # sparse, quantized, without data
        raise FqtError(f"{path.name} does not fit the model: {error}", code="FQT102") from error


def _named_as_model(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """``state`` by the names in the model's state dict; of a checkpoint the weights alone."""
    if "step" in state and any(name.startswith(_OURS) for name in state):
        weights = {n.partition("/")[2]: t for n, t in state.items() if n.startswith(_OURS)}
        owners = {id(tensor): weights[name] for name, tensor in _tensors(model) if name in weights}
        # A tensor that has several names in the model has one in a checkpoint.
        return weights | {name: owners[id(tensor)] for name, tensor in _tensors(model) if id(tensor) in owners}
    for prefix in _WRAPPERS * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return dict(state)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict(keep_vars=True).items())


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            state: object = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FqtError(f"no such file: {path}", code="FQT102") from None
    except pickle.UnpicklingError as error:
        raise FqtError(
            f"{path.name} is not a file of tensors",
            code="FQT102",
            hint="save it as torch.save(model.state_dict(), file): other objects are never unpickled",
        ) from error
    except (*_DAMAGE, safetensors.SafetensorError) as error:
        raise FqtError(f"cannot read {path.name}: {error}", code="FQT102") from error
    if isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return state
    names = f" with keys {_listed(map(str, state))}" if isinstance(state, Mapping) else ""
    raise FqtError(
        f"{path.name} holds a {type(state).__name__}{names}, not a mapping of names to tensors",
        code="FQT102",
        hint="save the state dict alone: torch.save(model.state_dict(), file)",
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
