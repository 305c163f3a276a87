"""Reading batches ahead of the step, in a thread of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

DEPTH = 4
"""Number of batches that may wait: enough for a slow file now and then."""
_T = TypeVar("_T")


@dataclass
class LoaderTime:
    """How long loading took.

    Attributes:
        loading: seconds that the thread spent on batches.
        waiting: seconds that the step waited for one.
        batches: number of batches that were loaded.
    """

    loading: float = 0.0
    waiting: float = 0.0
    batches: int = 0


@dataclass(frozen=True)
class _Failure(Generic[_T]):
    error: BaseException


@contextmanager
def load_ahead(
    load: Callable[[Any], _T], keys: Iterable[Any], spent: LoaderTime | None = None
) -> Iterator[Iterator[_T]]:
    """Within this context, an iterator of ``load(key)`` in the order of ``keys``; a thread is a few of them ahead.

    What ``load`` raises is raised where its batch is taken. The thread ends with the context.
    """
    spent = spent if spent is not None else LoaderTime()
    ready: queue.Queue[Any] = queue.Queue(DEPTH)
    ended, done = threading.Event(), object()

    def put(item: Any) -> None:
        while not ended.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for key in keys:
                if ended.is_set():
                    return
                begin = time.perf_counter()
                batch = load(key)
                spent.loading += time.perf_counter() - begin
                spent.batches += 1
                put(batch)
            put(done)
        except BaseException as error:  # noqa: BLE001 - handed over to who takes the batch
            put(_Failure(error))

    def taken() -> Iterator[_T]:
        while True:
            begin = time.perf_counter()
            item = ready.get()
            spent.waiting += time.perf_counter() - begin
            if item is done:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    thread = threading.Thread(target=run, name="fqt-loader", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        ended.set()
        thread.join()
