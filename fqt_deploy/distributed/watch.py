"""A thread that notices when another process of the training has ended, also one that closes no connection."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.distributed.waiting import lost

BEAT_S = 1.0
"""Seconds between two signs of life."""
SILENCE_S = 5.0
"""Seconds without a sign of life after which a process counts as ended."""
START_S = 300.0
"""Seconds that a process may take to its first sign of life, from that of the one that looks for it."""
GRACE_S = 2.0
"""Seconds in which a process that knows of another's end may end by itself."""
_ANSWER = timedelta(seconds=30)
_FAILED, _ENDED = "fqt/failed", "ended"


class Watch:
    """Signs of life in the store of torchrun: each process gives its own, and looks at those of the next one.

    Args:
        rank: number of this process.
        size: number of processes.
        prefix: names this start of the training: a restart uses the same store.

    Raises:
        FqtError: FQT604 if there is no such store.
    """

    def __init__(self, rank: int, size: int, prefix: str) -> None:
        self._rank, self._size = rank, size
        host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
        if not host:
            raise FqtError("MASTER_ADDR is not set", code="FQT604", hint="start with torchrun --nproc-per-node 2 ...")
        try:
            store = dist.TCPStore(host, port, is_master=False, timeout=_ANSWER)  # type: ignore[attr-defined]
        except RuntimeError as error:
            raise FqtError(f"there is no store at {host}:{port}: {error}", code="FQT604") from None
        self._store = dist.PrefixStore(f"fqt/{prefix}", store)  # type: ignore[attr-defined]
        self._error: FqtError | None = None
        self._end, self._told = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="fqt-watch", daemon=True)
        self._beat(0)
        self._thread.start()

    def check(self) -> None:
        """Raise FQT603 if a process has ended."""
        if self._error is not None:
            self._told.set()
            raise self._error

    def close(self, failure: str | None = None) -> None:
        """Give no more signs of life: this process has done its part, or failed with this message."""
        self._end.set()
        self._told.set()
        self._thread.join(2 * BEAT_S)
        try:
            self._store.set(f"alive/{self._rank}", _ENDED)
            if failure is not None:
                self._store.set(_FAILED, f"process {self._rank}: {failure}")
        except RuntimeError:  # the store has ended too
            return

    def _beat(self, count: int) -> None:
        self._store.set(f"alive/{self._rank}", str(count))

    def _run(self) -> None:
        following = (self._rank + 1) % self._size
        seen, since, count = "", time.monotonic(), 0
        while not self._end.wait(BEAT_S):
            count += 1
            try:
                self._beat(count)
                if self._store.check([_FAILED]):
                    self._fail(lost(self._store.get(_FAILED).decode()))
                    return
                sign = self._sign_of(following)
                if sign != seen:
                    seen, since = sign, time.monotonic()
                elif sign != _ENDED and time.monotonic() - since > (SILENCE_S if seen else START_S):
                    message = f"process {following} gives no sign of life"
                    self._store.set(_FAILED, message)
                    self._fail(lost(message))
                    return
            except RuntimeError as error:
                self._fail(lost(f"the store of torchrun does not answer: {error}"))
                return

    def _fail(self, error: FqtError) -> None:
        """Let the next ``check`` raise ``error``; where none follows, in a long evaluation, end the process."""
        self._error = error
        if not self._told.wait(GRACE_S) and not self._end.is_set():
            print(error.render(), file=sys.stderr, flush=True)
            os._exit(1)

    def _sign_of(self, rank: int) -> str:
        name = f"alive/{rank}"
        return self._store.get(name).decode() if self._store.check([name]) else ""
