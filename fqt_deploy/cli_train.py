"""fqt-train: train a compiled step on arrays from a file; needs neither PyTorch nor the compiler.

Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage; after saving a checkpoint, 130 when
interrupted and 143 when told to terminate.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
import numpy as np
from numpy.typing import NDArray

from fqt_deploy import __version__
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime import Session, load
from fqt_deploy.runtime.arrays import check_values

EXAMPLES = """
\b
Examples:
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10 --resume     after an interruption
  fqt-train vgg16_cifar.fqt --data train.npz --eval-data test.npz --epochs 60 --lr 1e-3 --schedule cosine

\b
The data file is written by numpy.savez(file, x=..., y=...): x [samples, ...] of the model's input type (uint8 images
are scaled to [0, 1]), y [samples, ...] of the target type. A checkpoint is saved after every epoch. Ctrl-C, and SIGTERM
from a scheduler, finish the step, save a checkpoint and end; a second one ends at once.
"""


_STOPPED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""Signals that end training after the step in progress, with what is said then."""


@dataclass(frozen=True)
class Data:
    """Samples and targets, one each a row."""

    x: NDArray[np.generic]
    y: NDArray[np.generic]


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--data", required=True, type=click.Path(path_type=Path), metavar="FILE.npz", help="Training data.")
@click.option("--eval-data", type=click.Path(path_type=Path), metavar="FILE.npz", help="Report accuracy on these.")
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(min=1), help="Passes over the data.")
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
    try:
        session = load(artifact)
        path = checkpoint or artifact / "checkpoint.safetensors"
        check_writable(path)
        if path.exists() and not (resume or overwrite):
            raise FqtError(
                f"{path} holds the checkpoint of an earlier run, and would be overwritten",
                code="FQT508",
                hint="--resume continues from it; --overwrite starts anew; or choose another --checkpoint",
            )
        if eval_data is not None and session.manifest.classes is None:
            raise FqtError("accuracy needs targets that are class labels", code="FQT510", hint="leave --eval-data out")
        _tell("reading the data")
        train = read_data(data, session)
        held_out = read_data(eval_data, session) if eval_data is not None else None
        if resume:
            session.load_checkpoint(path)
        if lr is not None:
            session.lr = lr
        if stopped_by := _train(session, train, epochs, schedule == "cosine", path):
            click.echo(f"{_STOPPED[stopped_by]}: saved {path}; continue with --resume", err=True)
            sys.exit(128 + stopped_by)
        if held_out is not None:
            _tell("evaluating")
            correct = session.predict(held_out.x).argmax(-1) == held_out.y
            click.echo(f"accuracy {100 * correct.mean():.2f} % on {len(held_out.x)} samples")
    except FqtError as error:
        click.echo(error.render(), err=True)
        sys.exit(1)


def read_data(path: Path, session: Session) -> Data:
    """Arrays ``x`` and ``y`` of an npz file, as the step takes them.

    Raises:
        FqtError: FQT510 if the file does not hold them, FQT506 or FQT507 for NaN or labels out of range in them.
    """
    try:
        file = np.load(path)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, not x and y")
        with file:
            if missing := [name for name in ("x", "y") if name not in file]:
                raise ValueError(f"it has no array {missing[0]!r}")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise FqtError(
            f"cannot read {path}: {error}", code="FQT510", hint="numpy.savez(file, x=..., y=...) writes it"
        ) from None
    if x.dtype == np.uint8:
        x = x.astype(np.float32) / 255
    inputs, targets = session.manifest.inputs
    if y.dtype.kind in "iu":
        y = y.astype(targets.dtype)
    for name, array, spec in (("x", x, inputs), ("y", y, targets)):
        if array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:] or str(array.dtype) != spec.dtype:
            raise FqtError(
                f"{name} in {path} is {array.dtype} {list(array.shape)}; the step takes {spec.dtype} samples of "
                f"{list(spec.shape[1:])}",
                code="FQT510",
            )
    if len(x) != len(y) or len(x) < session.manifest.batch:
        raise FqtError(
            f"{path} holds {len(x)} samples and {len(y)} targets; a batch takes {session.manifest.batch}", code="FQT510"
        )
    try:
        check_values("x", x)
        check_values("y", y, classes=session.manifest.classes)
    except FqtError as error:
        raise FqtError(f"in {path}, {error.message}", code=error.code, hint=error.hint) from None
    return Data(x, y)


def check_writable(checkpoint: Path) -> None:
    """FQT508 unless a checkpoint can be written there: better known before an epoch than after it."""
    folder = checkpoint.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or checkpoint.is_dir():
        raise FqtError(f"cannot write {checkpoint}", code="FQT508", hint="choose another --checkpoint")


def _train(session: Session, data: Data, epochs: int, cosine: bool, checkpoint: Path) -> int:
    """Run the steps that are left, and return the signal that ended them early or 0; a checkpoint follows every epoch.

    The order of the samples depends on seed and epoch alone, so a resumed run sees the batches it would have seen.
    """
    batch = session.manifest.batch
    steps = len(data.x) // batch
    initial = session.lr if isinstance(session.lr, tuple) else (session.lr,)
    started, begin = session.step_count, time.perf_counter()
    if started >= epochs * steps:
        _tell(f"{started} of {epochs * steps} steps are done already: nothing to train")
    with _stoppable() as stop, _progress(epochs * steps, started) as show:
        while session.step_count < epochs * steps:
            epoch, position = divmod(session.step_count, steps)
            order = np.random.default_rng([session.seed, epoch]).permutation(len(data.x))
            if cosine:
                factor = 0.5 * (1 + math.cos(math.pi * session.step_count / (epochs * steps)))
                session.lr = [rate * factor for rate in initial]
            rows = order[position * batch : (position + 1) * batch]
            loss = session.step(data.x[rows], data.y[rows], check=True)
            speed = (session.step_count - started) * batch / (time.perf_counter() - begin)
            show(session.step_count, f"epoch {epoch + 1}/{epochs}  loss {loss:.4f}  {speed:.0f} samples/s")
            if stop or position == steps - 1:
                rates = session.lr
                session.lr = list(initial)  # a schedule starts again from the initial rate
                session.save_checkpoint(checkpoint)
                session.lr = rates
            if stop:
                return stop[0]
    return 0


def _tell(text: str) -> None:
    click.echo(f"{text} ...", err=True)


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list that takes the first of the signals in ``_STOPPED``; a second one ends the program at once."""
    signals: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    previous = {number: signal.signal(number, note) for number in _STOPPED}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(total: int, completed: int) -> Iterator[Callable[[int, str], None]]:
    """A function ``(steps, text)`` that shows a bar on a terminal, and a line every few seconds elsewhere."""
    if not sys.stderr.isatty():
        last = [0.0]

        def line(step: int, text: str) -> None:
            if step == total or time.perf_counter() - last[0] > 5:
                last[0] = time.perf_counter()
                click.echo(f"step {step}/{total}  {text}", err=True)

        yield line
        return
    with click.progressbar(length=total, file=sys.stderr, item_show_func=lambda text: text) as bar:
        bar.update(completed)
        yield lambda step, text: bar.update(step - bar.pos, text)
