"""A clock for the kernels of a session's steps: when each began and ended, at a small cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.cuda_library import CudaLibrary
from fqt_deploy.runtime.digests import symbol_digest
from fqt_deploy.runtime.library import Library
from fqt_deploy.runtime.session import Session, StepFunctions

_FIELDS = 3
_ROOM = 4
"""Number of steps that may pass before their calls are taken."""


@dataclass(frozen=True)
class KernelCalls:
    """The kernel calls of one step, in the order of ``manifest.kernels``.

    Attributes:
        begin: nanoseconds of ``time.monotonic_ns``, one for each call.
        end: the same, when it returned.
    """

    begin: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def seconds(self) -> NDArray[np.float64]:
        """How long each call took."""
        return (self.end - self.begin) / 1e9


class KernelClock:
    """Times the kernels of the steps that a session runs within its context; after it the session goes on as usual.

    Args:
        session: a session of a compiled artifact. Of several shapes of batches, the manifest's first is timed.

    Raises:
        FqtError: FQT202 if its steps run elsewhere, FQT503 if an earlier version compiled them.
    """

    def __init__(self, session: Session) -> None:
        library = session.functions
        if not isinstance(library, (Library, CudaLibrary)):
            raise FqtError(
                f"kernels are timed of compiled artifacts; {session.manifest.name} runs in another runtime",
                code="FQT202",
                hint="time its step as a whole",
            )
        self._session, self._library = session, library
        timed: tuple[StepFunctions, Callable[..., None], Callable[[], int]] = library.timed()
        self._timed, self._start, self._take = timed
        self._symbols = np.array([symbol_digest(kernel.symbol) for kernel in session.manifest.kernels], np.int64)
        self._calls = np.zeros((_ROOM * len(self._symbols), _FIELDS), np.int64)

    def __enter__(self) -> KernelClock:
        self._start(self._calls.ctypes.data, len(self._calls))
        self._session.functions = self._timed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.functions = self._library
        self._start(0, 0)

    def take(self) -> KernelCalls:
        """The calls of the step since the last time; to be taken after each step.

        Raises:
            FqtError: FQT502 if the step called other kernels than the manifest says.
        """
        count = int(self._take())
        calls = self._calls[:count].copy()
        if not np.array_equal(calls[:, 0], self._symbols):
            raise FqtError(
                f"{self._library.path} calls {count} kernels in a step, and the manifest lists {len(self._symbols)}",
                code="FQT502",
                hint="take one step at a time, of the first shape of batches; else compile the model again",
            )
        return KernelCalls(calls[:, 1], calls[:, 2])
