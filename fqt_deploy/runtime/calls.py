"""Calls of compiled code, by process and thread: TVM keeps a pool of workers for every thread that calls it.

A process that was forked has no workers, and would wait for them for ever: when it computes, and, if the thread that
forked has a pool, when it ends. Workers of a thread outlive it. Code that still runs while the process ends finds TVM's
data gone. So: a forked process is refused, and one thread calls for all others, which is waited for when the
interpreter ends. Handing a call over costs some tens of microseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from fqt_deploy.core.diagnostics import FqtError

_first_process: int | None = None


def enter_process() -> None:
    """Note that this process computes.

    Raises:
        FqtError: FQT512 in the child of a process that did so before it forked.
    """
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
        os.register_at_fork(after_in_child=_end_without_statics)
    elif _first_process != os.getpid():
        raise FqtError(
            "this process was forked from one that had computed already; the worker threads were not forked with it",
            code="FQT512",
            hint="start processes with multiprocessing.get_context('spawn'), and load the artifact in each",
        )


def _end_without_statics() -> None:
    """Let a forked process end without TVM's static destructors, which wait for the workers of other threads."""
    with contextlib.suppress(AttributeError):  # only glibc has it: there, what is registered last is called first
        process = ctypes.CDLL(None)
        process.on_exit(process._exit, None)


class Turn:
    """Lets one thread at a time use a session; for a second one that is a mistake, not a reason to wait."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise FqtError(
                "another thread is using this session",
                code="FQT512",
                hint="give each thread a session of its own, or put a lock around the calls",
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``function(*arguments)``, called from the thread that calls for all others.

    What a signal's handler raises meanwhile, such as KeyboardInterrupt, is raised when the call is done.

    Raises:
        FqtError: FQT512 in a thread that outlives the interpreter.
    """
    return _caller.call(function, arguments)


@dataclass(slots=True)
class _Job:
    """A call, and what came of it: a value, or an error; ``done`` is locked until there is one of them."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    done: threading.Lock = field(default_factory=threading.Lock)
    finished: bool = False
    value: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        """Make the call, and let the one who waits for it go on."""
        try:
            self.value = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            self.error = error
        self.finished = True
        self.done.release()

    def result(self) -> Any:
        """Wait for the call; its value, or the error that it raised, or that a signal's handler raised meanwhile."""
        interruption: BaseException | None = None
        while not self.finished:
            try:
                self.done.acquire()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = error
        failure = self.error or interruption
        if failure is not None:
            raise failure
        return self.value


class _Caller:
    """The thread that calls for all others; it is started when it is first needed."""

    def __init__(self) -> None:
        self._start = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        job = _Job(function, arguments)
        job.done.acquire()
        with self._start:
            if self._closed:
                raise FqtError(
                    "the interpreter is ending",
                    code="FQT512",
                    hint="end threads before the program ends: Thread.join()",
                )
            if self._jobs is None:
                self._jobs = queue.SimpleQueue()
                self._thread = threading.Thread(target=_work, args=(self._jobs,), name="fqt-calls", daemon=True)
                self._thread.start()
            self._jobs.put(job)
        return job.result()

    def close(self) -> None:
        """Finish the call in progress and take no more; a forked process has no such thread to wait for."""
        with self._start:
            self._closed = True
            if self._jobs is not None and self._thread is not None and self._thread.is_alive():
                self._jobs.put(None)
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job.run()
        del job  # the state of a session is not kept until the next call


_caller = _Caller()
atexit.register(_caller.close)  # at once: a thread may call for the first time when the interpreter is already ending
