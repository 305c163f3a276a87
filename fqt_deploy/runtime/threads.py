"""The number of threads that the kernels use; it must be settled before the runtime library is loaded."""

from __future__ import annotations

import os

from fqt_deploy.core.diagnostics import FqtError

MOST_THREADS = 1024
"""Upper bound of threads: more than any machine has cores, and as many as a usual system lets a process start."""
SPIN = 100
"""Number of times that an idle worker looks for work before it sleeps: some tens of microseconds, the gap between two
kernels.
"""


def configure_threads() -> int:
    """Hand ``FQT_NUM_THREADS`` to TVM and return it.

    The default are the processors available to this process, shared evenly among those that torchrun has started on
    this machine.

    Threads are not bound to cores: binding hurts wherever another process, such as PyTorch's pool, is active. They spin
    for a short time only, and not at all where there are more of them than cores: a worker that spins takes the core
    from one that computes, and the process cannot end before it sleeps.

    Raises:
        FqtError: FQT202 if it is not an integer from 1 to ``MOST_THREADS``.
    """
    available = len(os.sched_getaffinity(0))
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    share = max(1, available // int(local)) if local.isdecimal() and int(local) else available
    given = os.environ.get("FQT_NUM_THREADS", str(min(share, MOST_THREADS)))
    digits = given.lstrip("0") if given.isascii() and given.isdecimal() else ""
    if not digits or len(digits) > len(str(MOST_THREADS)) or int(digits) > MOST_THREADS:
        raise FqtError(
            f"FQT_NUM_THREADS is {given[:40]!r}; it must be an integer from 1 to {MOST_THREADS}", code="FQT202"
        )
    os.environ["TVM_NUM_THREADS"] = digits
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0" if int(digits) > available else str(SPIN))
    return int(digits)
