"""Waiting for other processes, which may have ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from fqt_deploy.core.diagnostics import FqtError

PATIENCE = timedelta(seconds=1)
"""How long to wait before asking whether the others are still alive."""


def lost(why: object) -> FqtError:
    """The error for a process of the group that has ended; ``why`` is what is known of it."""
    return FqtError(
        f"another process of the training has ended: {str(why).strip().splitlines()[0]}",
        code="FQT603",
        hint="its own message says why; torchrun --max-restarts 3 starts all again, from the last checkpoint",
    )


def wait_for(work: Any, check: Callable[[], None]) -> None:
    """Wait until ``work`` of torch.distributed is done.

    Args:
        work: what an asynchronous collective returned.
        check: raises FQT603 if a process has ended; asked every second.

    Raises:
        FqtError: FQT603 if a process has ended.
    """
    while True:
        try:
            work.wait(PATIENCE)
            return
        except RuntimeError as error:  # of the collective, or because it takes longer
            check()
            if work.is_completed():
                raise lost(error) from None
