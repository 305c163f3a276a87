"""How many threads the kernels use; must be settled before the runtime library is loaded."""

from __future__ import annotations

import os

from fqt_deploy.core.diagnostics import FqtError


def configure_threads() -> int:
    """Hand ``FQT_NUM_THREADS`` (default: the processors available to this process) to TVM and return it.

    Threads are not bound to cores: binding hurts wherever another process, such as PyTorch's pool, is active.

    Raises:
        FqtError: FQT202 if it is not a positive integer.
    """
    given = os.environ.get("FQT_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    if not given.isdecimal() or int(given) < 1:
        raise FqtError(f"FQT_NUM_THREADS is {given!r}; it must be a positive integer", code="FQT202")
    os.environ["TVM_NUM_THREADS"] = given
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    return int(given)
