"""A digest of Python objects by what they are made of, code and weights included, as far as a compilation can see it.

The objects are pickled into a hash. What pickle keeps by reference alone is opened: a function of the user's is its
bytecode, its closure and the values of the globals that it names; a class of the user's is its functions. Functions and
classes of installed packages are their names, because their files are looked at elsewhere (``surroundings``).
"""

from __future__ import annotations

import hashlib
import inspect
import pickle
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fqt_deploy
from fqt_deploy.untrained_model import Notice

LARGEST = 2**28
"""Bytes of a pickle, without the contents of tensors and arrays, from which on its digest is not worth the time."""

_INSTALLED = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(fqt_deploy.__file__).parent),
)
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType)


def fingerprint(*objects: object) -> str | None:
    """Hexadecimal digest of ``objects``; None where one of them holds something that cannot be looked into.

    Equal digests mean equal objects. Equal objects may have different digests, as sets have no order.
    """
    found = _Hash()
    try:
        _Fingerprint(found, protocol=5).dump(objects)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RuntimeError, NotImplementedError):
        return None  # a lock, an open file, a generator, a tensor without storage, ...
    return found.digest.hexdigest()


def _is_installed(file: str | None) -> bool:
    """Whether code of the file ``file`` comes with Python or with a package, this one too."""
    return file is None or file.startswith((*_INSTALLED, "<frozen"))


def _is_users(kind: type) -> bool:
    """Whether the class ``kind`` is defined in a file of the user's, as far as its module is known."""
    module = sys.modules.get(kind.__module__)
    return module is None or kind.__module__ == "__main__" or not _is_installed(getattr(module, "__file__", None))


class _Hash:
    """The file that is pickled into."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, content: Any) -> None:
        self.size += len(content)
        if self.size > LARGEST:
            raise ValueError("too large")
        self.digest.update(content)


def _made(*_: object) -> None:
    """Stands in the pickle for what would make the object; nothing is ever read back."""


class _Fingerprint(pickle.Pickler):
    """The pickler; ``state`` of what is opened follows its name, so that what refers to itself ends."""

    def __init__(self, file: _Hash, **settings: Any) -> None:
        super().__init__(file, **settings)
        self._storages: dict[int, int] = {}

    def reducer_override(self, value: Any) -> Any:
        if value is _made:
            return NotImplemented
        match value:
            case Tensor():
                return _made, ("tensor", type(value), *self._tensor(value))
            case np.ndarray() if not value.dtype.hasobject:
                return _made, ("array", value.dtype.str, value.shape, _digest(value))
            case nn.Module():  # without its own way of pickling: parametrized modules refuse it
                return _made, ("module", type(value)), dict(_attributes(value))
            case types.FunctionType():
                name = (value.__module__, value.__qualname__)
                return _made, ("function", *name), tuple(_function(value)) if _is_open(value) else None
            case type():
                name = (value.__module__, value.__qualname__)
                return _made, ("class", *name), tuple(_class(value)) if _is_users(value) else None
            case types.ModuleType():
                return _made, ("package", value.__name__)
            case property():
                return _made, ("property", value.fget, value.fset, value.fdel)
            case staticmethod() | classmethod():
                return _made, (type(value).__name__, value.__func__)
            case types.CodeType():
                return _made, ("code", *_code(value))
            case torch._ops.OpOverload() | torch._ops.OpOverloadPacket():
                return _made, ("op", str(value))
            case types.MappingProxyType():
                return _made, ("mapping", dict(value))
        return NotImplemented

    def _tensor(self, tensor: Tensor) -> Iterator[Any]:
        """All that there is to know of ``tensor``, also which others look at the same memory."""
        storage = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" else 0
        yield from (str(tensor.dtype), tuple(tensor.shape), tensor.stride(), tensor.requires_grad, str(tensor.device))
        yield self._storages.setdefault(storage, len(self._storages)) if storage else None
        plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
        yield _digest(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else ""


def _digest(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes of ``module``; its hooks without their keys, which are counted through the whole process.

    The notice that an earlier compilation left there changes nothing of a step.
    """
    for name, value in vars(module).items():
        hooks = "_hooks" in name and isinstance(value, dict)
        yield name, [hook for hook in value.values() if not isinstance(hook, Notice)] if hooks else value


def _is_open(function: types.FunctionType) -> bool:
    """Whether a name is not enough to know ``function``: it is the user's, or was made by another function."""
    return not _is_installed(function.__code__.co_filename) or "<" in function.__qualname__


def _function(function: types.FunctionType) -> Iterator[Any]:
    """The parts of ``function`` that its results depend on."""
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    yield [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    if not _is_installed(function.__code__.co_filename):
        yield dict(_globals(function))


def _is_empty(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is ...
    except ValueError:  # it was not assigned
        return True


def _globals(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The globals that ``function`` names, and what it may read of the user's modules among them."""
    names = sorted(set(_names(function.__code__)))
    for name in names:
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        yield name, value
        if isinstance(value, types.ModuleType) and not _is_installed(getattr(value, "__file__", None)):
            yield from (
                (f"{name}.{attribute}", vars(value)[attribute]) for attribute in names if attribute in vars(value)
            )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _code(code: types.CodeType) -> Iterator[Any]:
    """The code, and the lines that messages will name."""
    yield from (code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield from (code.co_flags, code.co_argcount, code.co_kwonlyargcount, code.co_filename, code.co_firstlineno)
    yield code.co_exceptiontable
    yield [sorted(map(repr, c)) if isinstance(c, frozenset) else c for c in code.co_consts]


def _class(kind: type) -> Iterator[Any]:
    """The bases of a class and its own attributes that decide what its objects do."""
    yield kind.__bases__
    for name, value in vars(kind).items():
        special = name.startswith("__") and name.endswith("__") and not inspect.isfunction(value)
        if not special and not isinstance(value, _DESCRIPTORS) and name != "_abc_impl":
            yield name, value
