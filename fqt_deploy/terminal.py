"""What a long-running command says on standard output and standard error, whether or not anybody reads it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from fqt_deploy.core.diagnostics import FqtError


def open_standard_streams() -> None:
    """Point standard streams that are closed at nothing: else the next file would be opened in their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs


def tell(text: str) -> None:
    """Say how it goes; where nobody reads it any more, that is no reason to end."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def print_line(text: str) -> None:
    """Print a result; FQT508 where it cannot be written."""
    try:
        click.echo(text)
    except OSError as error:
        raise FqtError(f"cannot write {text!r} to standard output: {error.strerror}", code="FQT508") from None


@contextmanager
def show_progress(total: int, completed: int) -> Iterator[Callable[[int, str], None]]:
    """A function ``(steps, text)`` that shows a bar on a terminal, and a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        last = [0.0]

        def line(step: int, text: str) -> None:
            if step == total or time.perf_counter() - last[0] > 5:
                last[0] = time.perf_counter()
                tell(f"step {step}/{total}  {text}")

        yield line
        return

    def advance(step: int, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            bar.update(step - bar.pos, text)

    bar = click.progressbar(length=total, file=sys.stderr, item_show_func=lambda text: text)
    with contextlib.suppress(OSError):
        bar.__enter__()
        bar.update(completed)
    try:
        yield advance
    finally:
        with contextlib.suppress(OSError):
            bar.render_finish()
