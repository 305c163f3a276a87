"""One run of ``fqt-train``: open the data, train, evaluate, predict. It needs neither PyTorch nor the compiler."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.stop_signals import STOPPED, StopSignals
from fqt_deploy.terminal import print_line, show_progress, tell
from fqt_deploy.training_options import BEST, CHECKPOINT, TrainingOptions

if TYPE_CHECKING:
    from fqt_deploy.runtime import Session
    from fqt_deploy.runtime.epoch_record import EpochRecord
    from fqt_deploy.runtime.group import Group
    from fqt_deploy.runtime.preparation import Prepared
    from fqt_deploy.runtime.watch_log import LoggedWatch


@dataclass(frozen=True, kw_only=True)
class TrainingRun(TrainingOptions):
    """The run of training that the command line asks for.

    Attributes:
        artifact: the compiled step.
    """

    artifact: Path

    @property
    def checkpoint_file(self) -> Path:
        """The checkpoint that the run keeps."""
        return self.checkpoint or self.artifact / CHECKPOINT

    @property
    def best_file(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.best or self.artifact / BEST

    def finish(self, signals: StopSignals) -> None:
        """Train, as the only writer of the checkpoint, and evaluate unless a signal has ended it."""
        # These imports take a while: signals are handled by now.
        from fqt_deploy.runtime import load
        from fqt_deploy.runtime.artifact import sweep_artifact, unreplaced
        from fqt_deploy.runtime.epoch_record import EpochRecord
        from fqt_deploy.runtime.locks import only_writer
        from fqt_deploy.runtime.metrics import check_measurable

        with contextlib.ExitStack() as stack:
            group = stack.enter_context(_group()) if self.data is not None else None
            leads = group is None or group.rank == 0
            if leads:
                sweep_artifact(self.artifact)
            stack.enter_context(unreplaced(self.artifact))
            session = load(self.artifact)
            if self.data is not None and leads:
                check_writable(self.checkpoint_file)
                stack.enter_context(only_writer(self.checkpoint_file))
                self._check_replaceable()
            if self.eval_data is not None and self.data is not None:
                check_measurable(session.manifest)
            if leads:
                tell("reading the data ...")
            train = self._open(self.data, session, training=True) if self.data is not None else None
            held_out = self._open(self.eval_data, session, training=False) if self.eval_data is not None else None
            record = EpochRecord(self.best_file, self.patience, self.log, self.tensorboard)
            if self.resume and leads:
                record.resume(session.load_checkpoint(self.checkpoint_file))
            if group is not None and train is not None:
                self._join(session, group, train, record)
            if self.lr is not None:
                session.lr = self.lr
            if train is not None:
                self._train(session, train, held_out, record, signals)
            if not leads:
                return
            if signals.received:
                tell(f"{STOPPED[signals.received]}: saved {self.checkpoint_file}; continue with --resume")
            elif held_out is not None:
                self._evaluate(session, held_out)

    def _watch(self, session: Session) -> LoggedWatch:
        """What looks at the steps' gradients and weights, as often as was asked for, and logs it."""
        from fqt_deploy.core.step_notes import NOTES, StepNotes
        from fqt_deploy.runtime.files import read_file
        from fqt_deploy.runtime.watch import TrainingWatch
        from fqt_deploy.runtime.watch_log import LoggedWatch, WatchLog

        if self.watch is None:
            return LoggedWatch(None, WatchLog(None, None))
        path, kernels = self.artifact / NOTES, len(session.manifest.kernels)
        kept = StepNotes.from_json(read_file(path), kernels).kept if path.is_file() else {}
        leads = session.group is None or session.group.rank == 0
        log = WatchLog(self.watch_log, self.tensorboard) if leads else WatchLog(None, None)
        return LoggedWatch(TrainingWatch(session, self.watch, kept), log)

    def _join(self, session: Session, group: Group, data: Prepared, record: EpochRecord) -> None:
        """Train with the other processes, which must have the same data and options; process 0 knows the checkpoint."""
        group.check_same("the data", data.digest())
        schedule = (self.epochs, self.lr, self.schedule, self.warmup, self.mean, self.std, self.flip, self.crop)
        group.check_same("what the command line asks for", repr(schedule))
        session.join(group)
        record.resume(json.loads(group.share_text(json.dumps(record.kept()))))

    def _evaluate(self, session: Session, held_out: Prepared) -> None:
        """Print the metrics of the trained session, and write its predictions."""
        import io

        import numpy as np

        from fqt_deploy.runtime.files import replace_file
        from fqt_deploy.runtime.metrics import evaluate, predictions

        tell("evaluating ...")
        if self.data is not None:
            found = evaluate(session, held_out)
            labels = session.manifest.labels
            unit = "numbers" if labels is None else "samples" if len(labels.shape) == 1 else "labels"
            others = {name: value for name, value in found.values.items() if name != "accuracy"}
            if "accuracy" in found.values:
                print_line(f"accuracy {100 * found.values['accuracy']:.2f} % on {found.count} {unit}")
            print_line(", ".join(f"{name} {value:.4g}" for name, value in others.items()))
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
        preparation = Preparation(self.mean, self.std, self.flip, self.crop)
        preparation.check(manifest.model_inputs[0].shape[1:])
        source = open_source(path, manifest) if is_source(path) else read_data(path, manifest)
        processes = processes_of_torchrun() if training else 1
        if training and not batch_sizes(manifest.variants, len(source) // processes):
            several = f" in each of {processes} processes" if processes > 1 else ""
            raise FqtError(
                f"{path} holds {len(source)} samples; a batch takes {manifest.batch}{several}", code="FQT510"
            )
        return Prepared(source, preparation, manifest, str(path), session.seed)

    def _check_replaceable(self) -> None:
        """FQT508 unless a checkpoint may be written: over an earlier one only when asked, over anything else never."""
        from fqt_deploy.runtime.checkpoint import is_checkpoint
        from fqt_deploy.runtime.files import sweep

        sweep(Path(os.path.realpath(self.checkpoint_file)))
        if self.resume or not self.checkpoint_file.exists():
            return
        if not is_checkpoint(self.checkpoint_file):
            raise FqtError(
                f"{self.checkpoint_file} is no checkpoint, and would be overwritten",
                code="FQT508",
                hint="choose another --checkpoint, or remove the file",
            )
        if not self.overwrite:
            raise FqtError(
                f"{self.checkpoint_file} holds the checkpoint of an earlier run, and would be overwritten",
                code="FQT508",
                hint="--resume continues from it; --overwrite starts anew; or choose another --checkpoint",
            )

    def _train(
        self, session: Session, data: Prepared, held_out: Prepared | None, record: EpochRecord, signals: StopSignals
    ) -> None:
        from fqt_deploy.runtime.metrics import evaluate
        from fqt_deploy.runtime.training import PLACE, Progress, Schedule, plan_of, train

        group = session.group
        leads = group is None or group.rank == 0
        plan = plan_of(session, len(data), self.epochs, record.kept())
        batch = plan.processes * sum(plan.sizes) / len(plan.sizes)
        total = plan.total
        started, begin = session.step_count, time.perf_counter()
        if started >= total and leads:
            tell(f"{started} of {total} steps are done already: nothing to train ...")
        with show_progress(total, started) if leads else contextlib.nullcontext(_say_nothing) as show_text:
            watch = self._watch(session)

            def show(step: int, epoch: int, loss: float) -> None:
                record.add_loss(loss)
                progress.kept.update(record.kept())
                watch.end()
                seconds, loader = time.perf_counter() - begin, progress.loader
                rate = f"{(step - started) * batch / seconds:.0f} samples/s"
                loaded = f"loader {loader.batches * batch / max(loader.loading, 1e-9):.0f}"
                show_text(step, f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}  {rate} ({loaded})")

            def ended(epoch: int) -> bool:
                rate = session.lr[0] if isinstance(session.lr, tuple) else session.lr
                found = {"loss": record.mean_loss, "lr": rate, **session.metrics}
                record.place = progress.kept.get(PLACE)
                if not leads:
                    assert group is not None
                    record.close(epoch)
                    return group.share_text("") == "ends"
                evaluation = evaluate(session, held_out) if held_out is not None else None
                ends = record.note(session, epoch, found, evaluation)
                progress.kept = record.kept()
                if watch.told:
                    tell(watch.told)
                if evaluation is not None:
                    told = ", ".join(f"{name} {value:.4g}" for name, value in evaluation.values.items())
                    tell(f"epoch {epoch + 1}/{self.epochs}  loss {found['loss']:.4f}  {told}")
                if ends:
                    tell(f"{record.waited} epochs without a better one: ending; the best is in {self.best_file}")
                if group is not None:
                    group.share_text("ends" if ends else "goes on")
                return ends

            progress = Progress(
                show, lambda: signals.received != 0, ended, record.owes, record.kept(), begin=watch.begin
            )
            schedule = Schedule(self.schedule == "cosine", self.warmup)
            signals.training = True
            try:
                train(
                    session,
                    data,
                    epochs=self.epochs,
                    schedule=schedule,
                    checkpoint=self.checkpoint_file,
                    progress=progress,
                )
            finally:
                signals.training = False
                watch.close()
            if group is not None and group.stopped and not signals.received:  # another process was told to end
                signals.received = signal.SIGTERM


def _say_nothing(_: int, __: str) -> None:
    """Stands for the progress of a process that is not the first."""


def processes_of_torchrun() -> int:
    """Number of processes that torchrun has started this one among; 1 without it."""
    try:
        return int(os.environ.get("WORLD_SIZE", "1")) if "MASTER_ADDR" in os.environ else 1
    except ValueError:
        return 1


@contextmanager
def _group() -> Iterator[Group | None]:
    """The processes that torchrun has started, None where it is one; an error of this one is told to the others.

    Raises:
        FqtError: FQT604 if PyTorch is missing, or the processes cannot find each other.
    """
    if processes_of_torchrun() == 1:
        yield None
        return
    try:
        from fqt_deploy.distributed import TorchGroup
    except ImportError as error:
        raise FqtError(
            f"training in several processes needs PyTorch: {error}",
            code="FQT604",
            hint="pip install 'fqt-deploy[distributed]'",
        ) from None
    group = TorchGroup()
    try:
        yield group
    except BaseException as error:
        group.close(f"{error.code} {error.message}" if isinstance(error, FqtError) else type(error).__name__)
        raise
    group.close()


def check_writable(checkpoint: Path) -> None:
    """FQT508 unless a checkpoint can be written there: better known before an epoch than after it."""
    real = Path(os.path.realpath(checkpoint))
    if not real.parent.is_dir() or not os.access(real.parent, os.W_OK) or (real.exists() and not real.is_file()):
        raise FqtError(f"cannot write {checkpoint}", code="FQT508", hint="choose another --checkpoint")
