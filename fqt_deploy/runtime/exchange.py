"""The exchange of gradients with other processes, as compiled steps call it; without other processes it does nothing.

A step that was compiled for several processes calls functions by their names. They act on what the thread that
runs the step has set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import EXCHANGE_FINISH, EXCHANGE_START, EXCHANGE_STATISTICS, PROCESS_SHARE


class Exchange(Protocol):
    """The way in which the gradients of one step are summed up over all processes."""

    def begin(self, seed: int, step: int) -> None:
        """Begin step ``step``, counted from 0; with the seed of this process it determines every random number."""

    def share(self, number: Any) -> None:
        """Replace ``number``, [] float32 with ``__dlpack__``, by 1 / number of processes."""

    def start(self, index: int, gradient: Any, kept: Any = None) -> None:
        """Begin to replace a gradient by its sum over all processes.

        Args:
            index: its number.
            gradient: [...] float32 with ``__dlpack__``.
            kept: [K] int32 with ``__dlpack__``, the only rows of the gradient, which then is [O, J], that are not zero;
                as many in every process, and valid during the call. None if all rows count.
        """

    def finish(self, index: int) -> None:
        """Wait until gradient ``index`` is replaced."""

    def statistics(self, rows: int, sums: Sequence[Any], moments: Sequence[Any]) -> None:
        """Replace statistics of each channel by those of all processes, and wait for it.

        Args:
            rows: over which this process has taken them.
            sums: [C] float32 with ``__dlpack__`` each; they become the mean sum of a row times ``rows``.
            moments: likewise nothing, or a mean, a variance, and perhaps the variance divided by one row less.
        """


class _Thread(threading.local):
    """What the step that a thread runs exchanges with.

    Attributes:
        exchange: the exchange; None in a process alone.
        error: what it raised: compiled code passes on no more than a text.
    """

    exchange: Exchange | None = None
    error: FqtError | None = None


_thread = _Thread()


@contextmanager
def exchanging(exchange: Exchange | None) -> Iterator[None]:
    """Within this context steps of this thread exchange their gradients; an error of the exchange is raised as it was.

    Args:
        exchange: the exchange; None for a process alone.
    """
    _thread.exchange, _thread.error = exchange, None
    try:
        yield
    except Exception:
        if _thread.error is not None:
            raise _thread.error from None
        raise
    finally:
        _thread.exchange = _thread.error = None


def register_exchange(ffi: ModuleType) -> None:
    """Make the functions known to TVM's runtime."""
    functions = {
        PROCESS_SHARE: _share,
        EXCHANGE_START: _start,
        EXCHANGE_FINISH: _finish,
        EXCHANGE_STATISTICS: _statistics,
    }
    for name, function in functions.items():
        ffi.register_global_func(name, function, override=True)


def _share(number: Any) -> None:
    if _thread.exchange is not None:
        _thread.exchange.share(number)


def _start(gradient: Any, index: int, kept: Any = None) -> None:
    if _thread.exchange is not None:
        with _kept():
            _thread.exchange.start(int(index), gradient, kept)


def _finish(index: int) -> None:
    if _thread.exchange is not None:
        with _kept():
            _thread.exchange.finish(int(index))


def _statistics(rows: int, sums: int, *arrays: Any) -> None:
    if _thread.exchange is not None:
        with _kept():
            _thread.exchange.statistics(int(rows), arrays[: int(sums)], arrays[int(sums) :])


@contextmanager
def _kept() -> Iterator[None]:
    """Keep an error of the exchange for ``exchanging``."""
    try:
        yield
    except FqtError as error:
        _thread.error = error
        raise
