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
from typing import TYPE_CHECKING, Any

import click

from fqt_deploy import __version__
from fqt_deploy.core.diagnostics import FqtError

if TYPE_CHECKING:
    from fqt_deploy.runtime import Session
    from fqt_deploy.runtime.epoch_record import EpochRecord
    from fqt_deploy.runtime.preparation import Prepared

EXAMPLES = """
\b
Examples:
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10
  fqt-train vgg16_cifar.fqt --data train.npz --epochs 10 --resume     after an interruption
  fqt-train vgg16_cifar.fqt --data train.npz --eval-data test.npz --epochs 60 --lr 1e-3 --schedule cosine
  fqt-train vgg16_cifar.fqt --data photos/train --eval-data photos/test --epochs 60 --warmup 500 --schedule cosine
            --mean 0.49,0.48,0.45 --std 0.25,0.24,0.26 --flip --crop 4 --patience 10 --log run.csv
  fqt-train vgg16_cifar.fqt --eval-data photos/new --predict logits.npy         train nothing, predict

\b
Data are, read batch by batch in a thread of their own but for .npz and tables:
  FILE.npz                  numpy.savez(file, x=..., y=...), or with the names of the model's inputs and targets
  folder with x.npy, y.npy  the same, mapped into memory
  folder of class folders   images, scaled and cut to size; needs Pillow: pip install 'fqt-deploy[images]'
  FILE.tar, folder of .tar  samples such as 17.jpg (or 17.x.npy) beside 17.cls (or 17.y.npy)
  FILE.csv, .parquet, ...   a row a sample; the target is the column target, label or y, or the last; Parquet, Arrow and
                            Feather need pyarrow: pip install 'fqt-deploy[tables]'
uint8 images are scaled to [0, 1], before --mean and --std. A checkpoint is saved after every epoch, and with
--eval-data the one of the best epoch too. Ctrl-C, SIGTERM from a scheduler and the end of the terminal finish the step,
save a checkpoint and end; a second one ends at once.
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
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Training data.")
@click.option(
    "--eval-data", type=click.Path(path_type=Path), metavar="PATH", help="Evaluate on these after each epoch."
)
@click.option("--epochs", default=1, show_default=True, type=click.IntRange(1, 10**9), help="Passes over the data.")
@click.option("--lr", type=float, help="Learning rate.  [default: as compiled]")
@click.option("--schedule", type=click.Choice(["constant", "cosine"]), default="constant", show_default=True)
@click.option(
    "--warmup", default=0, type=click.IntRange(0, 10**9), help="Steps in which the learning rate rises first."
)
@click.option("--mean", default="", metavar="NUMBERS", help="Subtract from each channel, such as 0.49,0.48,0.45.")
@click.option("--std", default="", metavar="NUMBERS", help="Divide each channel by.")
@click.option("--flip", is_flag=True, help="Train on images mirrored at random.")
@click.option(
    "--crop", default=0, type=click.IntRange(0, 10**4), help="Train on images shifted by up to so many pixels."
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="[default: DIR/checkpoint.safetensors]")
@click.option("--best", type=click.Path(path_type=Path), help="Best checkpoint.  [default: DIR/best.safetensors]")
@click.option("--patience", type=click.IntRange(1, 10**9), help="End after so many epochs without a better one.")
@click.option("--log", type=click.Path(path_type=Path), metavar="FILE.csv", help="Append a row for each epoch.")
@click.option("--tensorboard", type=click.Path(path_type=Path), metavar="FOLDER", help="Write scalars for TensorBoard.")
@click.option(
    "--predict", type=click.Path(path_type=Path), metavar="FILE.npy", help="Write what is predicted for --eval-data."
)
@click.option("--resume", is_flag=True, help="Continue from the checkpoint.")
@click.option("--overwrite", is_flag=True, help="Start anew and replace the checkpoint of an earlier run.")
@click.version_option(__version__)
def main(artifact: Path, **given: Any) -> None:
    """Train the compiled step in DIR."""
    if given["resume"] and given["overwrite"]:
        raise click.UsageError("--resume continues from the checkpoint that --overwrite would replace")
    if given["data"] is None and (given["predict"] is None or given["eval_data"] is None):
        raise click.UsageError("give --data to train on, or --eval-data and --predict")
    if given["predict"] is not None and given["eval_data"] is None:
        raise click.UsageError("--predict needs --eval-data")
    _open_standard_streams()
    signals = _Signals()
    given["checkpoint"] = given["checkpoint"] or artifact / "checkpoint.safetensors"
    given["best"] = given["best"] or artifact / "best.safetensors"
    try:
        with signals.taken():
            _Run(artifact=artifact, **given).finish(signals)
    except _Stopped:
        _tell(_STOPPED[signals.received])
    except FqtError as error:
        _tell(error.render())
        sys.exit(1)
    if signals.received:
        sys.exit(128 + signals.received)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The run of training that the command line asks for; a field for each option."""

    artifact: Path
    data: Path | None
    eval_data: Path | None
    epochs: int
    lr: float | None
    schedule: str
    warmup: int
    mean: str
    std: str
    flip: bool
    crop: int
    checkpoint: Path
    best: Path
    patience: int | None
    log: Path | None
    tensorboard: Path | None
    predict: Path | None
    resume: bool
    overwrite: bool

    def finish(self, signals: _Signals) -> None:
        """Train, as the only writer of the checkpoint, and evaluate unless a signal has ended it."""
        # These imports take a while: signals are handled by now.
        from fqt_deploy.runtime import load
        from fqt_deploy.runtime.artifact import sweep_artifact, unreplaced
        from fqt_deploy.runtime.epoch_record import EpochRecord
        from fqt_deploy.runtime.locks import only_writer
        from fqt_deploy.runtime.metrics import check_measurable

        with contextlib.ExitStack() as stack:
            sweep_artifact(self.artifact)
            stack.enter_context(unreplaced(self.artifact))
            session = load(self.artifact)
            if self.data is not None:
                check_writable(self.checkpoint)
                stack.enter_context(only_writer(self.checkpoint))
                self._check_replaceable()
            if self.eval_data is not None and self.data is not None:
                check_measurable(session.manifest)
            _tell("reading the data ...")
            train = self._open(self.data, session, training=True) if self.data is not None else None
            held_out = self._open(self.eval_data, session, training=False) if self.eval_data is not None else None
            record = EpochRecord(self.best, self.patience, self.log, self.tensorboard)
            if self.resume:
                record.resume(session.load_checkpoint(self.checkpoint))
            if self.lr is not None:
                session.lr = self.lr
            if train is not None:
                self._train(session, train, held_out, record, signals)
            if signals.received:
                _tell(f"{_STOPPED[signals.received]}: saved {self.checkpoint}; continue with --resume")
            elif held_out is not None:
                self._evaluate(session, held_out)

    def _evaluate(self, session: Session, held_out: Prepared) -> None:
        """Print the metrics of the trained session, and write its predictions."""
        import io

        import numpy as np

        from fqt_deploy.runtime.files import replace_file
        from fqt_deploy.runtime.metrics import evaluate, predictions

        _tell("evaluating ...")
        if self.data is not None:
            found = evaluate(session, held_out)
            labels = session.manifest.labels
            unit = "numbers" if labels is None else "samples" if len(labels.shape) == 1 else "labels"
            others = {name: value for name, value in found.values.items() if name != "accuracy"}
            if "accuracy" in found.values:
                _print(f"accuracy {100 * found.values['accuracy']:.2f} % on {found.count} {unit}")
            _print(", ".join(f"{name} {value:.4g}" for name, value in others.items()))
        if self.predict is not None:
            file = io.BytesIO()
            np.save(file, predictions(session, held_out))
            replace_file(self.predict, file.getvalue())

    def _open(self, path: Path, session: Session, *, training: bool) -> Prepared:
        """The data at ``path`` as the step takes them; FQT510 if they are less than a batch to train on."""
        from fqt_deploy.runtime.choose_variant import batch_sizes
        from fqt_deploy.runtime.data_file import read_data
        from fqt_deploy.runtime.preparation import Preparation, Prepared
        from fqt_deploy.runtime.sources.open_source import is_source, open_source

        manifest = session.manifest
        preparation = Preparation(_numbers("--mean", self.mean), _numbers("--std", self.std), self.flip, self.crop)
        preparation.check(manifest.model_inputs[0].shape[1:])
        source = open_source(path, manifest) if is_source(path) else read_data(path, manifest)
        if training and not batch_sizes(manifest.variants, len(source)):
            raise FqtError(f"{path} holds {len(source)} samples; a batch takes {manifest.batch}", code="FQT510")
        return Prepared(source, preparation, manifest, str(path), session.seed)

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

    def _train(
        self, session: Session, data: Prepared, held_out: Prepared | None, record: EpochRecord, signals: _Signals
    ) -> None:
        from fqt_deploy.runtime.choose_variant import batch_sizes
        from fqt_deploy.runtime.metrics import evaluate
        from fqt_deploy.runtime.training import Progress, Schedule, train

        sizes = batch_sizes(session.manifest.variants, len(data))
        batch = sum(sizes) / len(sizes)
        total = self.epochs * len(sizes)
        started, begin = session.step_count, time.perf_counter()
        losses: list[float] = []
        if started >= total:
            _tell(f"{started} of {total} steps are done already: nothing to train ...")
        with _progress(total, started) as show_text:

            def show(step: int, epoch: int, loss: float) -> None:
                losses.append(loss)
                seconds, loader = time.perf_counter() - begin, progress.loader
                rate = f"{(step - started) * batch / seconds:.0f} samples/s"
                loaded = f"loader {loader.batches * batch / max(loader.loading, 1e-9):.0f}"
                show_text(step, f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}  {rate} ({loaded})")

            def ended(epoch: int) -> bool:
                rate = session.lr[0] if isinstance(session.lr, tuple) else session.lr
                found = {"loss": sum(losses) / max(1, len(losses)), "lr": rate, **session.metrics}
                losses.clear()
                evaluation = evaluate(session, held_out) if held_out is not None else None
                ends = record.note(session, epoch, found, evaluation)
                progress.kept = record.kept()
                if evaluation is not None:
                    told = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.values.items())
                    _tell(f"epoch {epoch + 1}/{self.epochs}  loss {found['loss']:.4f}  {told}")
                if ends:
                    _tell(f"{record.waited} epochs without a better one: ending; the best is in {self.best}")
                return ends

            progress = Progress(show, lambda: signals.received != 0, ended, record.kept())
            schedule = Schedule(self.schedule == "cosine", self.warmup)
            signals.training = True
            try:
                train(
                    session, data, epochs=self.epochs, schedule=schedule, checkpoint=self.checkpoint, progress=progress
                )
            finally:
                signals.training = False


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    """The numbers in ``text``, with commas between them; FQT202 if they are none."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise FqtError(f"{flag} is {text!r}; it must be numbers with commas between them", code="FQT202") from None


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
