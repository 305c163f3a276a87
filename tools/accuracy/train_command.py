"""The commands ``pretrain``, ``transfer`` and ``scratch``: train every job of the command line that is not done yet."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from fqt_deploy.core.diagnostics import FqtError
from tools.accuracy.data import load_dataset
from tools.accuracy.job import Job, Record, append_record, read_records
from tools.accuracy.networks import NETWORKS
from tools.accuracy.rows import ALL_ROWS, OPTIMIZERS, check_target, is_binarized
from tools.accuracy.runner import run_job
from tools.accuracy.task import PHASES, make_task
from tools.accuracy.tuning import tuned_lr

TUNED = "tuned"

_HELP = {
    "pretrain": "train on the source classes",
    "transfer": "fine-tune on the target classes, from the weights of `pretrain`",
    "scratch": "train on the target classes from random weights",
}


def add_to(commands: Any) -> None:
    """Add one command for each phase."""
    for phase in PHASES:
        parser = commands.add_parser(phase, help=_HELP[phase])
        parser.add_argument("--data", required=True, help="digits, or path of CIFAR-10 or of a folder of images")
        parser.add_argument("--network", required=True, choices=list(NETWORKS))
        parser.add_argument(
            "--rows", nargs="+", choices=list(ALL_ROWS), default=["none"], help="recipes", metavar="ROW"
        )
        parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["adam"])
        parser.add_argument(
            "--lrs",
            nargs="+",
            default=["1e-3"],
            help="learning rates, or `tuned`: the best in the results, on validation; `tuned=ROW`: that of another row",
        )
        parser.add_argument("--seeds", nargs="+", type=int, default=[0])
        parser.add_argument("--steps", type=int, required=True)
        parser.add_argument("--batch", type=int, help="samples of a step (default: the network's)")
        parser.add_argument("--train-images", type=int, help="training images used, of all classes (default: all)")
        if phase == "transfer":
            parser.add_argument(
                "--pretrained",
                choices=list(ALL_ROWS),
                metavar="ROW",
                help="row whose weights to start from (default: one with 1-bit layers, or without, like the row)",
            )
        parser.add_argument("--target", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
        parser.add_argument("--results", type=Path, required=True, help="file of JSON lines to add to")
        parser.add_argument(
            "--work",
            type=Path,
            default=Path("build/accuracy"),
            help="artifacts, checkpoints, weights (default: %(default)s)",
        )
        parser.set_defaults(run=run, phase=phase)


def run(arguments: argparse.Namespace) -> int:
    """Train what is not in the results yet."""
    for row in arguments.rows:
        check_target(row, arguments.target)
    data = load_dataset(arguments.data, arguments.work)
    task = make_task(data, arguments.phase, arguments.train_images, mirrored=arguments.data != "digits")
    if task.mean.shape[0] != NETWORKS[arguments.network].image[0]:
        message = (
            f"{arguments.network} takes {NETWORKS[arguments.network].image[0]} channels, {arguments.data} has others"
        )
        raise FqtError(message, code="FQT103", hint="digits go with network digits, all else with the other networks")
    wanted = jobs(arguments, read_records(arguments.results))
    for number, job in enumerate(wanted, start=1):
        if any(record.job == job for record in read_records(arguments.results)):
            continue
        print(f"[{number} of {len(wanted)}] {job.title}", flush=True)
        record = run_job(job, task, arguments.work)
        if record is None:
            print(f"{job.title}: another process is at it", flush=True)
        else:
            append_record(arguments.results, record)
    return 0


def jobs(arguments: argparse.Namespace, records: list[Record]) -> list[Job]:
    """The jobs of a command line, seeds outermost: so all rows have a first run early."""
    found = []
    for seed, row, optimizer, lr in itertools.product(
        arguments.seeds, arguments.rows, arguments.optimizers, arguments.lrs
    ):
        job = Job(
            data=Path(arguments.data).name,
            network=arguments.network,
            phase=arguments.phase,
            row=row,
            optimizer=optimizer,
            lr=0.0 if lr.startswith(TUNED) else float(lr),
            steps=arguments.steps,
            batch=arguments.batch or NETWORKS[arguments.network].batch,
            train_images=arguments.train_images,
            seed=seed,
            pretrained=_pretrained(arguments, records, row) if arguments.phase == "transfer" else None,
            target=arguments.target,
        )
        if lr.startswith(TUNED):
            like = replace(job, row=lr.partition("=")[2] or row)
            job = replace(job, lr=tuned_lr(like, records).lr)
        found.append(job)
    return found


def _pretrained(arguments: argparse.Namespace, records: list[Record], row: str) -> str:
    """Digest of the pretrained weights that validated best, of this network and data.

    They come from the row that the command line names; without one, from any with 1-bit layers if ``row`` has them, and
    from any without if it has not.
    """
    data = Path(arguments.data).name
    origin = arguments.pretrained

    def fits(other: str) -> bool:
        return other == origin if origin else is_binarized(other) == is_binarized(row)

    fitting = [
        record
        for record in records
        if (record.job.phase, record.job.network, record.job.data) == ("pretrain", arguments.network, data)
        and fits(record.job.row)
    ]
    if not fitting:
        message = f"{arguments.results} holds no pretraining of {arguments.network} on {data} by {origin or row}"
        raise FqtError(message, code="FQT502", hint="run the command `pretrain` with the same --results first")
    best = max(fitting, key=lambda record: record.final_val)
    assert best.weights is not None
    return best.weights
