"""What one thread prints, held back; what others print meanwhile goes where it would have gone."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Iterator
from typing import Any


class _Divided(io.TextIOBase):
    """A stream that takes the text of the thread that made it; others' text, and all questions, go to ``before``."""

    def __init__(self, own: io.StringIO, before: Any) -> None:
        self._own, self._before, self._thread = own, before, threading.get_ident()

    def _stream(self) -> Any:
        return self._own if threading.get_ident() == self._thread else self._before

    def write(self, text: str) -> int:
        """Write ``text``; that of other threads is lost only in a program that was started without the stream."""
        stream = self._stream()
        return len(text) if stream is None else int(stream.write(text) or 0)

    def flush(self) -> None:
        """Flush where this thread writes."""
        if (stream := self._stream()) is not None:
            stream.flush()

    def writable(self) -> bool:
        """Returns that it is."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream that this one stands before."""
        return getattr(self._before, "encoding", None) or "utf-8"


@contextlib.contextmanager
def held_back(*, stdout: io.StringIO | None = None, stderr: io.StringIO | None = None) -> Iterator[None]:
    """Within this context this thread's text for ``sys.stdout`` and ``sys.stderr`` goes into what is given for them.

    Only one thread at a time may be in it (``one_at_a_time``): the streams belong to the process.
    """
    with contextlib.ExitStack() as stack:
        if stdout is not None:
            stack.enter_context(contextlib.redirect_stdout(_Divided(stdout, sys.stdout)))
        if stderr is not None:
            stack.enter_context(contextlib.redirect_stderr(_Divided(stderr, sys.stderr)))
        yield
