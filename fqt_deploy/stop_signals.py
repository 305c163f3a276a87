"""The signals that end training after the step in progress, once everything so far is saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end training after the step in progress, with what is said then."""


class Stopped(BaseException):
    """A signal that ends the program at once: nothing is being trained, or it is the second one."""


class StopSignals:
    """Takes the signals in ``STOPPED`` while the command runs.

    Attributes:
        received: the first one; 0 before.
        training: whether a step may be in progress, which is finished first.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False

    def note(self, number: int, _: FrameType | None) -> None:
        """Note the signal ``number``: the first one, in training, ends it after the step; any other ends at once."""
        first, self.received = not self.received, self.received or number
        if not (first and self.training):
            raise Stopped

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within this context the signals are handled here; what is ignored, as SIGHUP under nohup, stays so."""
        numbers = [n for n in STOPPED if signal.getsignal(n) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
            numbers = []
        previous = {number: signal.signal(number, self.note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
