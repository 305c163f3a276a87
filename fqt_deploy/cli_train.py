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

from pathlib import Path
from typing import Any

import click

from fqt_deploy import __version__
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.stop_signals import STOPPED, Stopped, StopSignals
from fqt_deploy.terminal import open_standard_streams, tell
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
    "--watch", type=click.IntRange(1, 10**9), metavar="N",
    help="Look at each layer's gradient and weights every N steps, for --tensorboard and --watch-log.",
)  # fmt: skip
@click.option(
    "--watch-log", type=click.Path(path_type=Path), metavar="FILE.csv", help="Append a row for each layer and look."
)
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
    if given["watch_log"] is not None and given["watch"] is None:
        raise click.UsageError("--watch-log needs --watch")
    open_standard_streams()
    signals = StopSignals()
    given["checkpoint"] = given["checkpoint"] or artifact / "checkpoint.safetensors"
    given["best"] = given["best"] or artifact / "best.safetensors"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":  # torchrun has started all processes again
        given["resume"] = given["checkpoint"].exists()
        given["overwrite"] = not given["resume"]
    try:
        with signals.taken():
            TrainingRun(artifact=artifact, **given).finish(signals)
    except Stopped:
        tell(STOPPED[signals.received])
    except FqtError as error:
        tell(error.render())
        sys.exit(1)
    if signals.received:
        sys.exit(128 + signals.received)


if __name__ == "__main__":
    main()
