"""One eager forward pass that leaves the module as it was, and the effects that were seen during it."""

from __future__ import annotations

import contextlib
import copy
import io
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from fqt_deploy.capture.tracing import trace_error
from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.thread_output import held_back

MODULE_ATTRIBUTES = frozenset(nn.Module().__dict__)
"""Attributes that every module has; buffers, parameters and modules are looked at by name."""

_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]

_PLAIN = (bool, int, float, complex, str, type(None))
_CONTAINERS = (list, tuple, dict, set)


@dataclass
class EagerRun:
    """The effects that were seen during one eager run.

    Attributes:
        lines: the line that assigned an attribute, by module and name.
        in_place: the line that changed a tensor in place, by its address.
        through_data: the lines that changed the ``.data`` of a tensor in place.
        result: what forward returned.
        after: parameters and buffers by name, as forward left them.
        changed: names of those that have another value, or are parameters that were written; the first name of each.
        assigned: names of those that are another tensor afterwards.
        attributes: plain values of Python attributes after the run, by module path and name.
        called: names of the functions of PyTorch that were called, in order.
    """

    lines: dict[tuple[int, str], SourceLocation | None] = field(default_factory=dict)
    in_place: dict[int, SourceLocation | None] = field(default_factory=dict)
    through_data: list[SourceLocation | None] = field(default_factory=list)
    result: Any = None
    after: dict[str, Tensor] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    assigned: frozenset[str] = frozenset()
    attributes: dict[tuple[str, str], Any] = field(default_factory=dict)
    called: list[str] = field(default_factory=list)

    def behaviour(self) -> tuple[Any, ...]:
        """What the run did but for the values of tensors: its calls, and what became of Python attributes."""
        return self.called, self.lines.keys(), self.attributes


def run_eagerly(module: nn.Module, tensors: dict[str, Tensor], inputs: tuple[Tensor, ...], what: str) -> EagerRun:
    """Run ``module`` once with copies of ``tensors`` and one seed, silently.

    Args:
        module: left with the copies, and with what forward assigned; see ``attributes_restored``.
        tensors: its parameters and buffers by name.
        inputs: the inputs of its forward.
        what: the step that is to be traced, for messages.

    Raises:
        FqtError: FQT104 if forward fails.
    """
    copies = _install_copies(module, tensors)
    record = _run(module, inputs, what)
    record.after = state_tensors(module)
    written = {n for n, t in tensors.items() if isinstance(t, nn.Parameter) and copies[id(t)]._version}
    differing = {n for n, t in tensors.items() if n in record.after and not equal(record.after[n], t)}
    first_names = {id(tensor): name for name, tensor in reversed(tensors.items())}
    record.changed = [n for n in first_names.values() if n in written or n in differing]
    record.assigned = frozenset(n for n in tensors if record.after.get(n) is not copies[id(tensors[n])])
    moved = written | differing | record.assigned
    # a copy of a whole model, and what its gradients need, is not kept until the end of the next run
    record.after = {n: t if n in moved else tensors.get(n, t) for n, t in record.after.items()}
    record.result = tree_map_only(Tensor, Tensor.detach, record.result)
    return record


def run_without_values(
    module: nn.Module, tensors: dict[str, Tensor], inputs: tuple[Tensor, ...], what: str
) -> EagerRun:
    """Run ``module`` once as ``run_eagerly`` does, on tensors of the same shapes that have no values.

    Only ``behaviour`` is recorded.

    Raises:
        FqtError: FQT104 if forward fails, as it does where it reads a value.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _install_copies(module, tensors, mode.from_tensor)
        return _run(module, tuple(mode.from_tensor(given) for given in inputs), what)


def _run(module: nn.Module, inputs: tuple[Tensor, ...], what: str) -> EagerRun:
    record = EagerRun()
    original, thread = nn.Module.__setattr__, threading.get_ident()

    def setattr_(owner: nn.Module, name: str, value: Any) -> None:
        if threading.get_ident() == thread:  # others have models of their own
            record.lines[id(owner), name] = SourceLocation.of_frame(sys._getframe(1))
        original(owner, name, value)

    torch.manual_seed(0)
    silent = io.StringIO()
    try:
        with (
            mock.patch.object(nn.Module, "__setattr__", setattr_),
            _InPlaceLines(record),
            held_back(stdout=silent, stderr=silent),
        ):
            record.result = module(*inputs)
    except FqtError:
        raise
    except Exception as error:
        raise trace_error(what, error) from error
    record.attributes = plain_attributes(module)
    return record


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def _install_copies(
    module: nn.Module, tensors: dict[str, Tensor], copy_of: Callable[[Tensor], Tensor] = torch.clone
) -> dict[int, Tensor]:
    """Give ``module`` copies of ``tensors``, tied ones once, and return them by the identity of the originals."""
    copies: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        owner = module.get_submodule(name.rpartition(".")[0])
        copied = copy_of(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, tensor.requires_grad)
        store: dict[str, Any] = owner._parameters if isinstance(tensor, nn.Parameter) else owner._buffers
        store[name.rpartition(".")[2]] = copies.setdefault(id(tensor), copied)
    return copies


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same shape, dtype and values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


class _InPlaceLines(TorchFunctionMode):
    """Notes the line that last changed the memory of a tensor in place, by the address of that memory."""

    def __init__(self, record: EagerRun) -> None:
        super().__init__()
        self.record = record
        self.data: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.record.called.append(name)
        changes = name in ("__set__", "__setitem__") or (name.endswith("_") and not name.endswith("__"))
        if args and has_values(args[0]) and (changes or re.fullmatch(r"__i\w+__", name)):
            line = SourceLocation.of_frame(sys._getframe(1))
            self.record.in_place[address_of(args[0])] = line
            if any(args[0] is tensor for tensor in self.data):
                self.record.through_data.append(line)
        if func == _DATA:
            self.data.append(result)
        return result


def has_values(given: Any) -> bool:
    """Whether ``given`` is a tensor that lies in memory."""
    return isinstance(given, Tensor) and not isinstance(given, FakeTensor)


def address_of(tensor: Tensor) -> int:
    """The address of the memory that ``tensor`` views, by which views of one tensor are known."""
    return tensor.untyped_storage().data_ptr()


def plain_attributes(module: nn.Module) -> dict[tuple[str, str], Any]:
    """Python attributes of all modules by path and name, as values that can be compared later."""
    return {
        (path, name): _plain(value)
        for path, owner in module.named_modules()
        for name, value in owner.__dict__.items()
        if name not in MODULE_ATTRIBUTES and isinstance(value, (*_PLAIN, *_CONTAINERS))
    }


def _plain(value: Any) -> Any:
    """A value that equals another one if both hold the same numbers and as many other objects."""
    if isinstance(value, dict):
        return {repr(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, set):
        return sorted(map(repr, value))
    return value if isinstance(value, _PLAIN) else type(value).__name__


@contextlib.contextmanager
def attributes_restored(module: nn.Module) -> Iterator[None]:
    """Leave the Python attributes of all modules as they were, the content of containers included."""
    kept = [(m, dict(m.__dict__)) for m in module.modules()]
    content: list[tuple[Any, Any]] = []
    for _, attributes in kept:
        content += [(v, copy.copy(v)) for v in attributes.values() if isinstance(v, (list, dict, set))]
    try:
        yield
    finally:
        for owner, attributes in kept:
            owner.__dict__.clear()
            owner.__dict__.update(attributes)
        for value, before in content:
            value.clear()
            (value.extend if isinstance(value, list) else value.update)(before)


@contextlib.contextmanager
def generators_restored() -> Iterator[None]:
    """Leave all generators as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def generator_states() -> tuple[Any, ...]:
    """The states of Python's and NumPy's global generators; they differ after a number was drawn."""
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, bytes(np.asarray(keys)), tuple(rest)
