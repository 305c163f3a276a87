"""The command fqt-train: train a compiled step on data from files; needs neither PyTorch nor the compiler.

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

import dataclasses
from pathlib import Path
from typing import Any

import click

from fqt_deploy import __version__
from fqt_deploy.command_line import SectionedCommand, given_options, with_flags
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.stop_signals import STOPPED, Stopped, StopSignals
from fqt_deploy.terminal import open_standard_streams, tell
from fqt_deploy.training_options import TRAINING_OPTIONS
from fqt_deploy.training_run import TrainingRun

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
Data, larger than memory but for .npz, are read batch by batch in a thread of their own:
  FILE.npz                  numpy.savez(file, x=..., y=...), or with the names of the model's inputs and targets
  folder with x.npy, y.npy  the same, mapped into memory
  folder of class folders   images, scaled and cut to size: pip install 'fqt-deploy[images]'
  FILE.tar, folder of .tar  samples such as 17.jpg (or 17.x.npy) beside 17.cls (or 17.y.npy)
  FILE.csv, .parquet, ...   a row a sample; the target is the column target, label or y, or the last; Parquet, Arrow and
                            Feather need pyarrow: pip install 'fqt-deploy[tables]'
uint8 images are scaled to [0, 1], before --mean and --std. A checkpoint is saved after every epoch, and with
--eval-data the one of the best epoch too. Ctrl-C, SIGTERM from a scheduler and the end of the terminal finish the step,
save a checkpoint and end; a second one ends at once.
"""


@with_flags(TRAINING_OPTIONS.values())
@click.command(cls=SectionedCommand, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.version_option(__version__)
def main(artifact: Path, **values: Any) -> None:
    """Train the compiled step in DIR."""
    open_standard_streams()
    signals = StopSignals()
    try:
        with signals.taken():
            run = TrainingRun(artifact=artifact, **given_options(TRAINING_OPTIONS.values(), values))
            if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # torchrun has started all processes again
                resume = run.checkpoint_file.exists()
                run = dataclasses.replace(run, resume=resume, overwrite=not resume)
            run.finish(signals)
    except Stopped:
        tell(STOPPED[signals.received])
    except FqtError as error:
        tell(error.render())
        sys.exit(1)
    if signals.received:
        sys.exit(128 + signals.received)


if __name__ == "__main__":
    main()
