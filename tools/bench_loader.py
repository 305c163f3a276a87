"""Train on a folder of JPEG files and on the same images in memory, and compare speed and memory; then kill a run.

Example: ``python -m tools.bench_loader resnet18.fqt --images cifar10.npz --seconds 10 --turns 3``.

The artifact takes images [3, 32, 32]. ``--images`` has the form that ``tools.train_cifar`` reads; its training images
are written as files, a folder for each class. Every turn is a process of its own, which trains as ``fqt-train`` does,
flips and shifts included: on the folder, on an ``.npz`` file (float32 arrays in memory), and on one batch again and
again, without any data to read. The last line is JSON: medians of the samples per second, and the megabytes that a run
takes at its peak beyond the one without data. ``cpu_share`` compares the cores' time a sample, which other programs on
the machine change less than ``share``.

With ``--kill`` runs of ``fqt-train`` on the first ``--count`` files are told to terminate, or killed, in the middle of
an epoch, and resumed: the checkpoint at the end and the losses of all epochs are those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

import fqt_deploy
from fqt_deploy.runtime.data_file import Data, read_data
from fqt_deploy.runtime.preparation import Preparation, Prepared
from fqt_deploy.runtime.sources.open_source import open_source
from fqt_deploy.runtime.training import Progress, Schedule, train

PREPARATION = Preparation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), flip=True, crop=4)
FLAGS = ("--mean", "0.4914,0.4822,0.4465", "--std", "0.2470,0.2435,0.2616", "--flip", "--crop", "4")
KINDS = ("folder", "arrays", "none")
WARM_UP = 5
"""Number of steps before time is taken."""


def write_folder(images: Path, folder: Path, count: int) -> None:
    """Write the first ``count`` training images as JPEG files, a folder for each class."""
    with np.load(images) as arrays:
        blob, offsets = arrays["train_jpeg"].tobytes(), arrays["train_offsets"].tolist()
        labels = arrays["train_labels"].tolist()
    for label in sorted(set(labels)):
        (folder / f"{label:02d}").mkdir(parents=True)
    for i, label in enumerate(labels[:count]):
        (folder / f"{label:02d}" / f"{i:05d}.jpg").write_bytes(blob[offsets[i] : offsets[i + 1]])


def write_arrays(folder: Path, file: Path) -> None:
    """Write the images of ``folder`` as uint8 arrays into an ``.npz`` file."""
    source = open_source(folder, _Images())  # type: ignore[arg-type]
    x, y = source.rows(np.arange(len(source)))
    np.savez(file, x=x, y=y)


class _Images:
    """Stands for a manifest: what a source needs to know of one."""

    class _Spec:
        name, shape = "x", (1, 3, 32, 32)

    model_inputs, targets, inputs = (_Spec(),), (_Spec(),), (_Spec(), _Spec())


class _SameBatch:
    """A source that reads nothing: every batch is the same one of zeros."""

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.count, self.zeros = count, np.zeros((1, *shape), np.uint8)

    def __len__(self) -> int:
        return self.count

    def rows(self, index: Any) -> tuple[Any, Any]:
        return np.broadcast_to(self.zeros, (len(index), *self.zeros.shape[1:])), np.zeros(len(index), np.int64)


def run_turn(artifact: Path, kind: str, folder: Path, seconds: float) -> dict[str, float]:
    """Train for so long; samples per second, cores' milliseconds a sample and the peak of resident megabytes."""
    session = fqt_deploy.load(artifact)
    manifest = session.manifest
    source: Any
    if kind == "folder":
        source = open_source(folder / "images", manifest)
    elif kind == "arrays":
        source = Data(read_data(folder / "images.npz", manifest).arrays)
    else:
        source = _SameBatch(50_000, manifest.model_inputs[0].shape[1:])
    data = Prepared(source, PREPARATION, manifest, kind, session.seed)
    begin, begin_cpu, done, peak = 0.0, 0.0, 0, 0

    def show(step: int, epoch: int, loss: float) -> None:
        nonlocal begin, begin_cpu, done, peak
        if step == WARM_UP:
            begin, begin_cpu = time.perf_counter(), time.process_time()
        done, peak = step, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    ended = ended_cpu = 0.0

    def stopped() -> bool:
        nonlocal ended, ended_cpu
        ended, ended_cpu = time.perf_counter(), time.process_time()
        return begin > 0 and ended - begin >= seconds

    checkpoint = folder / f"{kind}.safetensors"
    train(session, data, epochs=10**6, schedule=Schedule(), checkpoint=checkpoint, progress=Progress(show, stopped))
    samples = (done - WARM_UP) * manifest.batch
    cpu_ms = 1e3 * (ended_cpu - begin_cpu) / samples
    return {"rate": samples / (ended - begin), "cpu_ms": cpu_ms, "peak_mb": peak * 1024 / 1e6}


def compare(artifact: Path, folder: Path, seconds: float, turns: int) -> dict[str, float]:
    """Medians over turns, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for turn in range(turns):
        pair = KINDS[:2] if turn % 2 else KINDS[1::-1]  # neither always comes first
        for kind in (*pair, *(["none"] if turn == 0 else [])):
            command = (sys.executable, "-m", "tools.bench_loader", artifact, "--turn", kind, "--folder", folder)
            told = subprocess.run(
                [*map(str, command), "--seconds", str(seconds)], check=True, capture_output=True, text=True
            )
            found[kind].append(json.loads(told.stdout.splitlines()[-1]))
            print(kind, found[kind][-1], file=sys.stderr)
    rates = {kind: statistics.median(each["rate"] for each in found[kind]) for kind in KINDS}
    costs = {kind: min(each["cpu_ms"] for each in found[kind]) for kind in KINDS}
    peaks = {kind: max(each["peak_mb"] for each in found[kind]) for kind in KINDS}
    return {
        **{f"{kind}_samples_per_s": rates[kind] for kind in KINDS},
        "share": rates["folder"] / rates["arrays"],
        "cpu_share": costs["arrays"] / costs["folder"],
        "folder_more_mb": peaks["folder"] - peaks["none"],
        "arrays_more_mb": peaks["arrays"] - peaks["none"],
    }


def kill_and_resume(artifact: Path, folder: Path) -> dict[str, bool]:
    """Whether runs that were ended in the middle of an epoch and resumed are the same as one that was not."""

    def start(name: str, *more: str) -> subprocess.Popen[str]:
        kept = ("--checkpoint", folder / f"{name}.safetensors", "--log", folder / f"{name}.csv")
        command = (artifact, "--data", folder / "images", "--epochs", 3, "--schedule", "cosine", *FLAGS, *kept, *more)
        program = (sys.executable, "-m", "fqt_deploy.cli_train")
        return subprocess.Popen([*program, *map(str, command)], stderr=subprocess.PIPE, text=True)

    def wait_for_second_epoch(process: subprocess.Popen[str], log: Path) -> None:
        while not (log.exists() and log.read_text().count("\n") > 1):
            if process.poll() is not None:
                raise SystemExit("fqt-train ended before its second epoch")
            time.sleep(0.02)

    begin = time.perf_counter()
    start("whole").communicate()
    epoch = (time.perf_counter() - begin) / 3
    outcome = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(number.name)
        wait_for_second_epoch(process, folder / f"{number.name}.csv")
        time.sleep(epoch / 2)
        process.send_signal(number)
        process.communicate()
        start(number.name, "--resume").communicate()
        outcome[number.name] = results(folder, number.name) == results(folder, "whole")
    return outcome


def results(folder: Path, name: str) -> tuple[dict[str, str], dict[str, bytes], str]:
    """What a run left: metadata, which lie in the file in any order, arrays, and the log."""
    with safetensors.safe_open(folder / f"{name}.safetensors", "np") as file:
        metadata = {key: text for key, text in file.metadata().items() if key != "fqt_sha256"}
        arrays = {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118 - it is no dict
    return metadata, arrays, (folder / f"{name}.csv").read_text()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--images", type=Path, metavar="FILE.npz")
    parser.add_argument("--count", type=int, default=50_000, help="number of images")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the images here; written where they are missing")
    parser.add_argument("--turn", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.turn:
        print(json.dumps(run_turn(arguments.artifact, arguments.turn, arguments.folder, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "images").exists():
            write_folder(arguments.images, folder / "images", arguments.count)
        if arguments.kill:
            print(json.dumps(kill_and_resume(arguments.artifact, folder)))
            return
        if not (folder / "images.npz").exists():
            write_arrays(folder / "images", folder / "images.npz")
        print(json.dumps(compare(arguments.artifact, folder, arguments.seconds, arguments.turns)))


if __name__ == "__main__":
    main()
