"""Calls of a user's ``torch.autograd.Function`` keep the backward that they were written with.

``torch.export`` records the ops of a Function's forward, and whoever differentiates those gets another gradient than
the user wrote: zero behind a straight-through sign. So while a model is exported each call is one op, which PyTorch
expands when AOTAutograd runs the exported module: into the Function itself, whose forward and backward are traced.

Before, exported::

    signs = torch.ops.fqt_capture.custom_function.default([x], 0)

After, captured: the ops of ``Sign.forward`` in the place of this node, and those of ``Sign.backward`` behind it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from fqt_deploy.capture.tracing import untraceable

Function = torch.autograd.Function

_ORIGINAL = Function.__dict__["apply"]


@dataclass
class _Call:
    """One call of a Function.

    Attributes:
        function: the Function.
        given: the leaves of the arguments, with None in the place of tensors.
        places: where among them the tensors are.
        spec: the tree of the arguments.
        returned: the same of the result, once the Function has run.
    """

    function: type[Function]
    given: list[Any]
    places: list[int]
    spec: TreeSpec
    returned: list[Any] = field(default_factory=list)
    returned_places: list[int] = field(default_factory=list)
    returned_spec: TreeSpec | None = None

    def run(self, tensors: list[Tensor]) -> list[Tensor]:
        """Call the Function with ``tensors`` in their places; the tensors that it returns."""
        args, kwargs = tree_unflatten(_filled(self.given, self.places, tensors), self.spec)
        leaves, self.returned_spec = tree_flatten(_eager(self.function, *args, **kwargs))
        self.returned_places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.returned = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return [leaves[place] for place in self.returned_places]

    def result(self, tensors: list[Tensor]) -> Any:
        """What the Function returned, with ``tensors`` in the place of its tensors."""
        assert self.returned_spec is not None
        return tree_unflatten(_filled(self.returned, self.returned_places, tensors), self.returned_spec)


_calls: ContextVar[list[_Call]] = ContextVar("calls of Functions, which the ops number")


def _expand(tensors: list[Tensor], call: int) -> list[Tensor]:
    return _calls.get()[call].run(tensors)


_LIBRARY: Any = torch.library.Library("fqt_capture", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("custom_function(Tensor[] tensors, int call) -> Tensor[]")
_LIBRARY.impl("custom_function", _expand, "CompositeImplicitAutograd")


@contextlib.contextmanager
def custom_functions() -> Iterator[None]:
    """Within this context a module may be exported, in ``functions_as_ops``, and differentiated."""
    token = _calls.set([])
    try:
        yield
    finally:
        _calls.reset(token)


@contextlib.contextmanager
def functions_as_ops() -> Iterator[None]:
    """Within this context a call of a user's Function is one op; PyTorch's own expand as they are called."""

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))  # all threads come here; one captures, and has a list of calls
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if _is_of_torch(cls) or not places or _calls.get(None) is None:
            return _eager(cls, *args, **kwargs)
        given = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        call = _Call(cls, given, places, spec)
        _calls.get().append(call)
        tensors = [leaves[place] for place in places]
        return call.result(torch.ops.fqt_capture.custom_function(tensors, len(_calls.get()) - 1))

    with mock.patch.object(Function, "apply", classmethod(apply)):
        yield


@contextlib.contextmanager
def refuse_functions_in_place() -> Iterator[None]:
    """Within this context a user's Function that changes one of its operands is an FQT104 error: an op does not."""
    thread = threading.get_ident()

    def apply(cls: type[Function], *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return _eager(cls, *args, **kwargs)
        operands = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        before = [operand._version for operand in operands]
        result = _eager(cls, *args, **kwargs)
        if not _is_of_torch(cls) and before != [operand._version for operand in operands]:
            raise untraceable(
                f"torch.autograd.Function {cls.__qualname__} changes its input in place",
                "write y = x * 2 in place of x *= 2 in its forward, and leave mark_dirty() out",
            )
        return result

    with mock.patch.object(Function, "apply", classmethod(apply)):
        yield


def _eager(function: type[Function], *args: Any, **kwargs: Any) -> Any:
    return _ORIGINAL.__get__(None, function)(*args, **kwargs)


def _is_of_torch(function: type[Function]) -> bool:
    return function.__module__.partition(".")[0] == "torch"


def _filled(leaves: list[Any], places: list[int], tensors: list[Tensor]) -> list[Any]:
    filled = list(leaves)
    for place, tensor in zip(places, tensors, strict=True):
        filled[place] = tensor
    return filled
