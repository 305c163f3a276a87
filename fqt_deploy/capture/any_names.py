"""Names of modules and tensors that are no identifiers of Python, in the code that PyTorch generates."""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator
from unittest import mock

from torch.fx import graph as fx_graph


@contextlib.contextmanager
def any_names() -> Iterator[None]:
    """Within this context the code of a graph module reaches a module or a tensor by any name that it can have.

    PyTorch writes a keyword as an attribute, ``self.lambda``, and a quotation mark into a string that it ends.
    """
    with mock.patch.object(fx_graph, "_format_target", _access):
        yield


def _access(base: str, target: str) -> str:
    """The expression for what ``target``, names with dots between them, is in ``base``."""
    for name in target.split("."):
        plain = name.isidentifier() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base
