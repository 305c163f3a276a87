"""Calls of compiled code, by process and thread: TVM keeps a pool of workers for every thread that calls it.

A process that was forked has no workers, and would wait for them for ever. Workers of a thread outlive it. Code that
still runs while the process ends finds TVM's data gone. So: a forked process is refused; the main thread calls by
itself, and for all others one thread calls, which is waited for when the interpreter ends.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from fqt_deploy.core.diagnostics import FqtError

_LIMIT = "_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"
_RESTART = "_ZN3tvm7runtime9threading15ResetThreadPoolEv"
"""The symbols of ``tvm::runtime::threading::SetMaxConcurrency(int)`` and ``ResetThreadPool()``."""

_first_process: int | None = None


def enter_process() -> None:
    """Note that this process computes.

    Raises:
        FqtError: FQT512 in the child of a process that did so before it forked.
    """
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
        os.register_at_fork(before=_end_workers, after_in_parent=_allow_workers, after_in_child=_end_without_statics)
    elif _first_process != os.getpid():
        raise FqtError(
            "this process was forked from one that had computed already; the worker threads were not forked with it",
            code="FQT512",
            hint="start processes with multiprocessing.get_context('spawn'), and load the artifact in each",
        )


_cores: set[int] = set()
"""The cores that the main thread may use, while it forks."""

_held: list[int] = []
"""The main thread's workers that wait for an idle core, by thread number, while it forks."""

_ATTEMPTS = 100
"""How often new workers are started before a fork, until there are some that have not run."""

_TASKS = "/proc/self/task"
"""Where Linux lists the threads of this process."""


def _end_workers() -> None:
    """End the main thread's workers before it forks: a child waits for ever, when it ends, for one that waits for work.

    TVM starts as many new ones at once, which must not get to wait for work before the fork is done. So they share the
    core of this thread and run when nothing else wants it; when they did run before that was said, they are ended, too.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return
    if not hasattr(os, "sched_setaffinity"):
        _limit_workers(1)
        return
    _cores.update(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {min(_cores)})
    for _ in range(_ATTEMPTS):
        before = set(os.listdir(_TASKS))
        _limit_workers(1)
        _held.extend(int(task) for task in set(os.listdir(_TASKS)) - before)
        for worker in _held:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(worker, os.SCHED_IDLE, os.sched_param(0))
        if not any(_has_run(worker) for worker in _held):
            return
        _release_workers()


def _has_run(worker: int) -> bool:
    """Whether a thread of this process has been on a core; False when it cannot be known."""
    with contextlib.suppress(OSError), open(f"{_TASKS}/{worker}/schedstat") as file:
        return file.read().split()[0] != "0"
    return False


def _release_workers() -> None:
    """Let the workers run as others do, where the system allows it: who may not undo it waits for an idle core."""
    for worker in _held:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(worker, _cores)
            os.sched_setscheduler(worker, os.SCHED_OTHER, os.sched_param(0))
    _held.clear()


def _allow_workers() -> None:
    if threading.get_ident() == threading.main_thread().ident:
        _release_workers()
    _free_cores()
    _limit_workers(0)


def _free_cores() -> None:
    """Let the main thread use its cores again."""
    if _cores:
        os.sched_setaffinity(0, _cores)
        _cores.clear()


def _limit_workers(most: int) -> None:
    """Start TVM's pool of the main thread anew with at most so many threads; 0: as many as are configured."""
    if threading.get_ident() != threading.main_thread().ident:
        return
    with contextlib.suppress(AttributeError):  # TVM's library is not in this process: ONNX Runtime computes
        process = ctypes.CDLL(None)
        limit, restart = process[_LIMIT], process[_RESTART]
        limit(most)
        restart()


def _end_without_statics() -> None:
    """Let a forked process end without TVM's static destructors, which wait for the workers of other threads."""
    _held.clear()
    _free_cores()
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
    """The result of ``function(*arguments)``, called from the main thread or the one that calls for all others.

    Raises:
        FqtError: FQT512 in a thread that outlives the interpreter.
    """
    if threading.get_ident() == threading.main_thread().ident:
        return function(*arguments)
    return _caller.call(function, arguments)


class _Caller:
    """The thread that calls for all but the main thread; it is started when it is first needed."""

    def __init__(self) -> None:
        self._start = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[..., Any], Any, queue.SimpleQueue[Any]] | None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result: queue.SimpleQueue[Any] = queue.SimpleQueue()
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
            self._jobs.put((function, arguments, result))
        value, error = result.get()
        if error is not None:
            raise error
        return value

    def close(self) -> None:
        """Finish the call in progress and take no more; a forked process has no such thread to wait for."""
        with self._start:
            self._closed = True
            if self._jobs is not None and self._thread is not None and self._thread.is_alive():
                self._jobs.put(None)
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()


def _work(jobs: queue.SimpleQueue[tuple[Callable[..., Any], Any, queue.SimpleQueue[Any]] | None]) -> None:
    while (job := jobs.get()) is not None:
        function, arguments, result = job
        try:
            result.put((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - raised again where the call was made
            result.put((None, error))
        del job, function, arguments, result  # the state of a session is not kept until the next call


_caller = _Caller()
atexit.register(_caller.close)  # at once: a thread may call for the first time when the interpreter is already ending
