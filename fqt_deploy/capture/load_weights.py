"""Load a pretrained state dict into a model, from a safetensors or a PyTorch file."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fqt_deploy.core.diagnostics import FqtError

_DAMAGE = (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
           AssertionError, MemoryError, SyntaxError, struct.error, zipfile.BadZipFile)  # fmt: skip
"""The errors that torch.load and safetensors raise, by kind of damage."""
_SHOWN = 8
"""Number of names that an error lists before it counts the rest."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the tensors of ``path`` into ``model``: every parameter and buffer, and nothing else.

    Args:
        model: changed in place.
        path: ``.safetensors``, or a file of ``torch.save(model.state_dict(), ...)``, read without running code.

    Raises:
        FqtError: FQT102 if the file cannot be read or its names and shapes are not the model's.
    """
    state = _read(path)
    expected = model.state_dict()
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
        raise FqtError(f"{path.name} does not fit the model: {'; '.join(found)}", code="FQT102")
    if bad := [name for name, tensor in state.items() if tensor.is_floating_point() and bool(tensor.isnan().any())]:
        raise FqtError(f"{path.name} holds NaN in {_listed(bad)}", code="FQT102", hint="train from better weights")
    try:
        model.load_state_dict(dict(state), strict=False)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:  # sparse, quantized, without data
        raise FqtError(f"{path.name} does not fit the model: {error}", code="FQT102") from error


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
