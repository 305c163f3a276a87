"""What a run finds after each epoch: the best checkpoint, when to give up, and logs as CSV and for TensorBoard."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.event_file import EventFile
from fqt_deploy.runtime.metrics import Evaluation
from fqt_deploy.runtime.session import Session
from fqt_deploy.runtime.training import PLACE

_KEPT = "fqt_train"
"""The entry of a checkpoint's metadata."""


@dataclass
class EpochRecord:
    """Follows a run.

    Attributes:
        best_file: the checkpoint of the best epoch; None keeps none.
        patience: number of epochs without a better one, after which the run ends; None for no end.
        csv_file: a row for each epoch is appended to it; None writes none.
        tensorboard: folder of the files for TensorBoard; None writes none.
        best: the best value so far.
        waited: number of epochs since.
        epochs: number of epochs that were noted.
        losses: sum and number of the losses since then; a run that was stopped and resumed has all of an epoch's.
        place: the run's place in the data, where several processes train; every checkpoint keeps it.
    """

    best_file: Path | None = None
    patience: int | None = None
    csv_file: Path | None = None
    tensorboard: Path | None = None
    best: float | None = None
    waited: int = 0
    epochs: int = 0
    losses: tuple[float, int] = (0.0, 0)
    place: str | None = None
    _events: EventFile | None = None

    def kept(self) -> dict[str, str]:
        """What a checkpoint keeps, so that a resumed run goes on."""
        names = ("best", "waited", "epochs", "losses")
        place = {} if self.place is None else {PLACE: self.place}
        return {_KEPT: json.dumps({name: getattr(self, name) for name in names}), **place}

    def add_loss(self, loss: float) -> None:
        """Add the loss of a step to those of its epoch."""
        total, count = self.losses
        self.losses = total + loss, count + 1

    @property
    def mean_loss(self) -> float:
        """The mean of the losses since the latest epoch that was noted; NaN of none."""
        total, count = self.losses
        return total / count if count else float("nan")

    def owes(self, epoch: int) -> bool:
        """Whether ``epoch``, from 0, was trained to its end and not noted."""
        return self.epochs == epoch and self.losses[1] > 0

    def close(self, epoch: int) -> None:
        """Begin with the losses of the epoch after ``epoch``."""
        self.epochs, self.losses = epoch + 1, (0.0, 0)

    def resume(self, metadata: dict[str, str]) -> None:
        """Go on as the metadata of a checkpoint say; those of others say nothing. FQT502 if they are damaged."""
        try:
            said = json.loads(metadata.get(_KEPT, "{}"))
            best, waited, epochs = said.get("best"), int(said.get("waited", 0)), int(said.get("epochs", 0))
            total, count = said.get("losses", (0.0, 0))
            best, losses = None if best is None else float(best), (float(total), int(count))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FqtError(f"{_KEPT} in the checkpoint's metadata is damaged", code="FQT502") from None
        self.best, self.waited, self.epochs, self.losses, self.place = best, waited, epochs, losses, metadata.get(PLACE)

    def note(self, session: Session, epoch: int, found: dict[str, float], evaluation: Evaluation | None) -> bool:
        """Write what an epoch found, keep its checkpoint if it is the best; whether to end the run.

        Args:
            session: the session.
            epoch: number of the epoch, from 0.
            found: numbers by name, such as the mean loss.
            evaluation: of the held-out data, if there are any.
        """
        values = {**found, **({f"eval_{n}": v for n, v in evaluation.values.items()} if evaluation else {})}
        self.close(epoch)
        self._log({"epoch": epoch + 1, "step": session.step_count, **values})
        if evaluation is None:
            return False
        if evaluation.better_than(self.best):
            self.best, self.waited = evaluation.first, 0
            if self.best_file is not None:
                session.save_checkpoint(self.best_file, self.kept())
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def _log(self, row: dict[str, float]) -> None:
        try:
            if self.csv_file is not None:
                new = not self.csv_file.exists() or not self.csv_file.stat().st_size
                with self.csv_file.open("a", newline="") as file:
                    writer = csv.writer(file)
                    if new:
                        writer.writerow(row)
                    writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in row.values()])
            if self.tensorboard is not None:
                self._events = self._events or EventFile(self.tensorboard)
                for name, value in row.items():
                    if name not in ("epoch", "step"):
                        self._events.scalar(name, float(value), int(row["step"]))
        except OSError as error:
            raise FqtError(f"cannot write {error.filename}: {error.strerror}", code="FQT508") from None
