"""The command fqt-train: train a compiled step on arrays from a file; needs neither PyTorch nor the compiler.

Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage; after saving a checkpoint, 130 when
interrupted, 143 when told to terminate and 129 when the terminal is gone.
"""

from __future__ import annotations

import os
import signal
import sys

if os.path.basename(sys.argv[0]) == "fqt-train":
    # Until the command handles it, Ctrl-C ends the program without a traceback; imports take most of that time.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from fqt_deploy import __version__
from fqt_deploy.core.diagnostics import FqtError

if TYPE_CHECKING:
    from fqt_deploy.runtime import Session
    from fqt_deploy.runtime.data_file import Data

EXAMPLES = """
\b
Examples:
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10 --resume     after an interruption
  fqt-train vgg16_cifar.fqt --data train.npz --eval-data test.npz --epochs 60 --lr 1e-3 --schedule cosine

\b
The data file is written by numpy.savez(file, x=..., y=...), or with the names of the model's inputs and targets, such
as input_ids=..., labels=...: each [samples, ...] of its type (uint8 images are scaled to [0, 1]). A checkpoint is
saved after every epoch. Ctrl-C, SIGTERM from a scheduler and the end of the terminal finish the step, save a checkpoint
and end; a second one ends at once.
"""


_STOPPED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals that end training after the step in progress, with what is said then."""


class _Stopped(BaseException):
    """A signal that ends the program at once: nothing is being trained, or it is the second one."""


class _Signals:
    """Takes the signals in ``_STOPPED`` while the command runs.

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
            raise _Stopped

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Within this context the signals are handled here; what is ignored, as SIGHUP under nohup, stays so."""
        numbers = [n for n in _STOPPED if signal.getsignal(n) is not signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
            numbers = []
        previous = {number: signal.signal(number, self.note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE.npz", help="Training data.")
@click.option("--eval-data", type=click.Path(path_type=Path), metavar="FILE.npz", help="Report accuracy on these.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1, 10**9), help="Passes over the data.")
@click.option("--lr", type=float, help="Learning rate.  [default: as compiled]")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="[default: DIR/checkpoint.safetensors]")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint.")
@click.option("--overwrite", is_flag=True, help="Start anew and replace the checkpoint of an earlier run.")
@click.version_option(__version__)
def main(
    artifact: Path,
    data: Path,
    eval_data: Path | None,
    epochs: int,
    lr: float | None,
    schedule: str,
    checkpoint: Path | None,
    resume: bool,
    overwrite: bool,
) -> None:
    """Train the compiled step in DIR."""
    if resume and overwrite:
        raise click.UsageError("--resume continues from the checkpoint that --overwrite would replace")
    _open_standard_streams()
    signals = _Signals()
    path = checkpoint or artifact / "checkpoint.safetensors"
    try:
        with signals.taken():
            run = _Run(artifact, data, eval_data, epochs, lr, schedule == "cosine", path, resume, overwrite)
            run.finish(signals)
    except _Stopped:
        _tell(_STOPPED[signals.received])
    except FqtError as error:
        _tell(error.render())
        sys.exit(1)
    if signals.received:
        sys.exit(128 + signals.received)


@dataclass(frozen=True)
class _Run:
    """The run of training that the command line asks for."""

    artifact: Path
    data: Path
    eval_data: Path | None
    epochs: int
    lr: float | None
    cosine: bool
    checkpoint: Path
    resume: bool
    overwrite: bool

    def finish(self, signals: _Signals) -> None:
        """Train, as the only writer of the checkpoint, and evaluate unless a signal has ended it."""
        # These imports take a while: signals are handled by now.
        from fqt_deploy.runtime import load
        from fqt_deploy.runtime.artifact import sweep_artifact, unreplaced
        from fqt_deploy.runtime.data_file import read_data
        from fqt_deploy.runtime.locks import only_writer
        from fqt_deploy.runtime.training import accuracy

        with contextlib.ExitStack() as stack:
            sweep_artifact(self.artifact)
            stack.enter_context(unreplaced(self.artifact))
            session = load(self.artifact)
            check_writable(self.checkpoint)
            stack.enter_context(only_writer(self.checkpoint))
            self._check_replaceable()
            if self.eval_data is not None and session.manifest.classes is None:
                raise FqtError(
                    "accuracy needs targets that are class labels", code="FQT510", hint="leave --eval-data out"
                )
            _tell("reading the data ...")
            train = read_data(self.data, session.manifest)
            held_out = read_data(self.eval_data, session.manifest) if self.eval_data is not None else None
            if self.resume:
                session.load_checkpoint(self.checkpoint)
            if self.lr is not None:
                session.lr = self.lr
            self._train(session, train, signals)
            if signals.received:
                _tell(f"{_STOPPED[signals.received]}: saved {self.checkpoint}; continue with --resume")
            elif held_out is not None:
                _tell("evaluating ...")
                share, count = accuracy(session, held_out)
                of_samples = session.manifest.labels is not None and len(session.manifest.labels.shape) == 1
                _print(f"accuracy {100 * share:.2f} % on {count} {'samples' if of_samples else 'labels'}")

    def _check_replaceable(self) -> None:
        """FQT508 unless a checkpoint may be written: over an earlier one only when asked, over anything else never."""
        from fqt_deploy.runtime.checkpoint import is_checkpoint
        from fqt_deploy.runtime.files import sweep

        sweep(Path(os.path.realpath(self.checkpoint)))
        if self.resume or not self.checkpoint.exists():
            return
        if not is_checkpoint(self.checkpoint):
            raise FqtError(
                f"{self.checkpoint} is no checkpoint, and would be overwritten",
                code="FQT508",
                hint="choose another --checkpoint, or remove the file",
            )
        if not self.overwrite:
            raise FqtError(
                f"{self.checkpoint} holds the checkpoint of an earlier run, and would be overwritten",
                code="FQT508",
                hint="--resume continues from it; --overwrite starts anew; or choose another --checkpoint",
            )

    def _train(self, session: Session, data: Data, signals: _Signals) -> None:
        from fqt_deploy.runtime.training import train

        batch = session.manifest.batch
        total = self.epochs * (len(data) // batch)
        started, begin = session.step_count, time.perf_counter()
        if started >= total:
            _tell(f"{started} of {total} steps are done already: nothing to train ...")
        with _progress(total, started) as show_text:

            def show(step: int, epoch: int, loss: float) -> None:
                speed = (step - started) * batch / (time.perf_counter() - begin)
                show_text(step, f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}  {speed:.0f} samples/s")

            signals.training = True
            try:
                train(
                    session,
                    data,
                    epochs=self.epochs,
                    cosine=self.cosine,
                    checkpoint=self.checkpoint,
                    show=show,
                    stopped=lambda: signals.received != 0,
                )
            finally:
                signals.training = False


def check_writable(checkpoint: Path) -> None:
    """FQT508 unless a checkpoint can be written there: better known before an epoch than after it."""
    real = Path(os.path.realpath(checkpoint))
    if not real.parent.is_dir() or not os.access(real.parent, os.W_OK) or (real.exists() and not real.is_file()):
        raise FqtError(f"cannot write {checkpoint}", code="FQT508", hint="choose another --checkpoint")


def _open_standard_streams() -> None:
    """Point standard streams that are closed at nothing: else the next file would be opened in their place."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the program runs


def _tell(text: str) -> None:
    """Say how it goes; where nobody reads it any more, that is no reason to end."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _print(text: str) -> None:
    try:
        click.echo(text)
    except OSError as error:
        raise FqtError(f"cannot write {text!r} to standard output: {error.strerror}", code="FQT508") from None


@contextmanager
def _progress(total: int, completed: int) -> Iterator[Callable[[int, str], None]]:
    """A function ``(steps, text)`` that shows a bar on a terminal, and a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        last = [0.0]

        def line(step: int, text: str) -> None:
            if step == total or time.perf_counter() - last[0] > 5:
                last[0] = time.perf_counter()
                _tell(f"step {step}/{total}  {text}")

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


if __name__ == "__main__":
    main()
