"""Guards for ``torch.export``: it may not talk to the person's terminal, or forget the lines that led to a node."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import fx

from fqt_deploy.core.thread_output import held_back

_TORCH = f"{Path(torch.__file__).parent}/"


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep PyTorch's own log lines, graphs and deprecations off the terminal; a failure is told by our error instead.

    What the model itself prints to stderr is shown once tracing has succeeded.
    """
    handlers = _torch_handlers()
    printed = io.StringIO()
    with warnings.catch_warnings():
        # torch.export copies a deprecated class of torch itself
        warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
        # recurrent layers keep a list of their parameters
        warnings.filterwarnings("ignore", message=r"The tensor attributes .*_flat_weights", category=UserWarning)
        # side_effects.py tells those that matter from those that keep a value for whoever looks at it later
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during", category=UserWarning)
        for handler in handlers:
            handler.addFilter(_reject)
        try:
            with held_back(stderr=printed):
                yield
        finally:
            for handler in handlers:
                handler.removeFilter(_reject)
    sys.stderr.write(printed.getvalue())


def _torch_handlers() -> list[logging.Handler]:
    """PyTorch gives many of its loggers a handler of their own."""
    names = ["torch", *(name for name in logging.root.manager.loggerDict if name.startswith("torch."))]
    return [handler for name in names for handler in logging.getLogger(name).handlers]


def _reject(_: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def every_frame_recorded() -> Iterator[None]:
    """Within this context each traced node knows all lines that led to it.

    PyTorch keeps those of functions called ``forward``, and so none of a loss or of a model's other methods.
    """

    def from_first_forward(_: fx.proxy.TracerBase, frames: traceback.StackSummary) -> traceback.StackSummary:
        first = next((i for i, frame in enumerate(frames) if frame.name == "forward"), len(frames))
        return traceback.StackSummary.from_list([f for f in frames[first:] if not f.filename.startswith(_TORCH)])

    with mock.patch.object(fx.proxy.TracerBase, "_filter_traceback_frames", from_first_forward):
        yield
