"""How many threads a step uses; TVM reads it once, when its runtime library is loaded."""

from __future__ import annotations

import os

from fqt_deploy.core.diagnostics import FqtError

VARIABLE = "FQT_NUM_THREADS"
"""Environment variable with the number of threads of a step."""


def configure_threads() -> int:
    """Tell TVM the number of threads; call it before the runtime library is loaded.

    Returns:
        ``FQT_NUM_THREADS``, else ``TVM_NUM_THREADS``, else the number of processors this process may use.

    Raises:
        FqtError: FQT202 if a variable is not a positive integer.
    """
    for name in (VARIABLE, "TVM_NUM_THREADS"):
        if name in os.environ:
            threads = _positive(name, os.environ[name])
            break
    else:
        threads = len(os.sched_getaffinity(0))
    os.environ["TVM_NUM_THREADS"] = str(threads)
    # Bound threads of two processes would share the first processors and leave the others idle.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    return threads


def _positive(name: str, text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal() and int(digits) > 0):
        raise FqtError(f"{name} is {text!r}", code="FQT202", hint="give a positive whole number, or unset it")
    return int(digits)
