"""The options of ``fqt-train``, declared as those of ``fqt-compile`` are; each field is a flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import DATA, LOGS, TRAINING, WRITING, check_options, option, options_in
from fqt_deploy.core.option_kinds import listed, number

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
"""The names of an artifact's own checkpoint and of that of its best epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What a run of training reads, how it goes, and what it writes.

    Raises:
        FqtError: FQT202 for a value that is none of an option, and for options that contradict each other.
    """

    data: Path | None = option(None, "Train on these.", section=DATA)
    eval_data: Path | None = option(None, "Evaluate on these after each epoch.", section=DATA)
    mean: tuple[float, ...] = option(
        (),
        "Subtract from each channel, such as 0.49,0.48,0.45.",
        section=DATA,
        metavar="NUMBERS",
        default_text="0",
        kind=listed(number(float)),
    )
    std: tuple[float, ...] = option(
        (),
        "Divide each channel by.",
        section=DATA,
        metavar="NUMBERS",
        default_text="1",
        kind=listed(number(float)),
    )
    flip: bool = option(False, "Train on images mirrored at random.", section=DATA, flags=("--flip",))
    crop: int = option(
        0,
        "Train on images shifted by up to so many pixels.",
        section=DATA,
        metavar="PIXELS",
        minimum=0,
        below=10**4 + 1,
    )
    epochs: int = option(1, "Passes over the data.", section=TRAINING, minimum=1, below=10**9 + 1)
    lr: float | None = option(None, "Learning rate.", section=TRAINING, minimum=0, default_text="as compiled")
    schedule: Literal["constant", "cosine"] = option(
        "constant", "Keep the learning rate (constant), or let it fall to 0 (cosine).", section=TRAINING
    )
    warmup: int = option(
        0,
        "Steps in which the learning rate rises first.",
        section=TRAINING,
        metavar="STEPS",
        minimum=0,
        below=10**9 + 1,
    )
    patience: int | None = option(
        None,
        "End after so many epochs without a better one.",
        section=TRAINING,
        metavar="EPOCHS",
        minimum=1,
        below=10**9 + 1,
        default_text="off",
    )
    resume: bool = option(False, "Continue from the checkpoint.", section=TRAINING, flags=("--resume",))
    overwrite: bool = option(
        False, "Start anew and replace the checkpoint of an earlier run.", section=TRAINING, flags=("--overwrite",)
    )
    checkpoint: Path | None = option(
        None, "Save a checkpoint here after each epoch.", section=WRITING, default_text=f"DIR/{CHECKPOINT}"
    )
    best: Path | None = option(
        None, "Save the one of the best epoch here.", section=WRITING, default_text=f"DIR/{BEST}"
    )
    predict: Path | None = option(
        None,
        "Write what is predicted for --eval-data.",
        section=WRITING,
        metavar="FILE.npy",
    )
    log: Path | None = option(None, "Append a row for each epoch.", section=LOGS, metavar="FILE.csv")
    tensorboard: Path | None = option(None, "Write scalars for TensorBoard.", section=LOGS, metavar="FOLDER")
    watch: int | None = option(
        None,
        "Look at each layer's gradient and weights every N steps, for --tensorboard and --watch-log.",
        section=LOGS,
        metavar="N",
        minimum=1,
        below=10**9 + 1,
        default_text="off",
    )
    watch_log: Path | None = option(None, "Append a row for each layer and look.", section=LOGS, metavar="FILE.csv")

    def __post_init__(self) -> None:
        check_options(self)
        contradictions = {
            "--resume continues from the checkpoint that --overwrite would replace": self.resume and self.overwrite,
            "there is nothing to do; give --data to train on, or --eval-data and --predict": (
                self.data is None and (self.predict is None or self.eval_data is None)
            ),
            "--predict needs --eval-data": self.predict is not None and self.eval_data is None,
            "--watch-log needs --watch": self.watch_log is not None and self.watch is None,
        }
        for said, holds in contradictions.items():
            if holds:
                raise FqtError(said, code="FQT202", hint="fqt-train --help shows examples")


TRAINING_OPTIONS = options_in(TrainingOptions)
"""The options of the command by name."""
