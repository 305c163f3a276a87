"""Train one job with its compiled step: resumable, with progress, and one record at the end."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.files import replace_file
from tools.accuracy.artifacts import artifact_of, binarized_layers
from tools.accuracy.ideas import SCHEDULES
from tools.accuracy.job import Job, Record
from tools.accuracy.networks import NETWORKS, Calibration, Network, initial_state, with_new_head
from tools.accuracy.rows import OPTIMIZERS, ROWS, TORCH_ROWS, check_target
from tools.accuracy.scheduled_session import ScheduledSession
from tools.accuracy.task import Task
from tools.training import Array, accuracy, batches, cosine

EVALUATIONS = 12
"""Approximate number of entries of the curves of loss and validation accuracy."""
CHECKPOINT_EVERY = 60.0
"""Seconds of training that a kill may cost."""
QUIET = 20.0
"""Seconds without a line, after which one says how far training is."""


def run_job(job: Job, task: Task, work: Path) -> Record | None:
    """Train ``job``, or go on where an earlier process was stopped.

    Args:
        job: what to train.
        task: its images.
        work: folder for artifacts, checkpoints and weights.

    Returns:
        The record; None if another process is training this job.
    """
    with _locked(work / "locks" / job.key) as free:
        return _train(job, task, work) if free else None


def weights_path(work: Path, job: Job) -> Path:
    """The path where the weights of a finished job are kept."""
    return work / "weights" / f"{job.key}.safetensors"


def find_weights(work: Path, digest: str) -> dict[str, Array]:
    """Weights in ``work`` by the digest of their file.

    Raises:
        FqtError: FQT502 if there are none.
    """
    for file in sorted((work / "weights").glob("*.safetensors")):
        if digest_of(file.read_bytes()) == digest:
            arrays: dict[str, Array] = load_file(file)
            return arrays
    raise FqtError(f"{work} holds no weights with digest {digest}", code="FQT502", hint="pretrain again")


def digest_of(content: bytes) -> str:
    """Short digest of a file's content."""
    return hashlib.sha256(content).hexdigest()[:16]


def _train(job: Job, task: Task, work: Path) -> Record:
    artifacts = work / "artifacts"
    start = _start(job, task, work)
    session = open_session(
        NETWORKS[job.network],
        task.classes,
        job.batch,
        job.row,
        job.optimizer,
        artifacts,
        target=job.target,
        steps=job.steps,
        calibration=_calibration(job, task, start),
    )
    record = Record(job, revision(), threads=_threads())
    checkpoint = work / "checkpoints" / f"{job.key}.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        recent = _restore(session, record, checkpoint)
        print(f"{job.title}: goes on after step {session.step_count}", flush=True)
    else:
        session.load_state_dict(start)
        session.seed = job.seed
        recent = []
    _loop(job, task, session, record, recent, checkpoint)
    record.test = accuracy(session, task.normalized(task.test.x), task.test.y)
    content = save(session.state_dict())
    record.weights = digest_of(content)
    path = weights_path(work, job)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    checkpoint.unlink(missing_ok=True)
    print(f"{job.title}: val {record.final_val:.1%}, test {record.test:.1%}, {record.seconds:.0f} s", flush=True)
    return record


def open_session(
    network: Network,
    classes: int,
    batch: int,
    row: str,
    optimizer: str,
    artifacts: Path,
    *,
    target: str = "cpu",
    steps: int = 1,
    calibration: Calibration | None = None,
) -> Any:
    """The compiled step of a row, or PyTorch's, with the initial weights of seed 0; ``steps`` are a schedule's.

    Activations that are no signs are quantized on grids that fit ``calibration``, or these weights and random images.

    Raises:
        FqtError: FQT202 for PyTorch's on another target.
    """
    check_target(row, target)
    settings = OPTIMIZERS[optimizer]
    if row in SCHEDULES:
        parts = SCHEDULES[row]
        followed = [open_session(network, classes, batch, part, optimizer, artifacts, target=target) for part in parts]
        return ScheduledSession(followed, steps)
    if row not in TORCH_ROWS:
        chosen = ROWS[row] | settings | ({"target": target} if target != "cpu" else {})
        return fqt_deploy.load(artifact_of(network, classes, batch, chosen, artifacts, calibration))
    from tools.accuracy.torch_session import TorchSession

    binarized = binarized_layers(network, classes, batch, artifacts) if TORCH_ROWS[row]["binarized"] else []
    return TorchSession(network, classes, batch, binarized, settings, bf16=TORCH_ROWS[row]["bf16"])


def _start(job: Job, task: Task, work: Path) -> dict[str, Array]:
    """The weights that a job starts from."""
    network = NETWORKS[job.network]
    if job.pretrained is None:
        return initial_state(network, task.classes, job.seed)
    return with_new_head(find_weights(work, job.pretrained), network, task.classes, job.seed)


def _calibration(job: Job, task: Task, start: dict[str, Array]) -> Calibration:
    """What a job's grids are chosen by: its first weights and the first training images, as they are."""
    part = task.train
    return Calibration(start, task.normalized(part.x[: job.batch]), part.y[: job.batch])


def _loop(job: Job, task: Task, session: Any, record: Record, recent: list[float], checkpoint: Path) -> None:
    every = max(1, round(job.steps / EVALUATIONS))
    val_x = task.normalized(task.val.x)
    first = session.step_count
    told = saved = begin = time.monotonic()
    indices = batches(len(task.train.x), job.batch, job.steps, job.seed)
    for step, index in enumerate(itertools.islice(indices, first, None), start=first):
        images, labels = task.augmented(index, (job.seed, step))
        start = time.perf_counter()
        session.lr = cosine(job.lr, step, job.steps)
        recent.append(session.step(images, labels))
        record.seconds += time.perf_counter() - start
        done, now = step + 1, time.monotonic()
        if done % every == 0 or done == job.steps:
            record.losses.append((done, round(float(np.mean(recent)), 5)))
            record.val.append((done, round(accuracy(session, val_x, task.val.y), 5)))
            recent.clear()
        if now - saved > CHECKPOINT_EVERY:
            metadata = {"record": record.to_line(), "recent": json.dumps(recent)}
            session.save_checkpoint(checkpoint, metadata)
            saved = time.monotonic()
        if now - told > QUIET or done == job.steps:
            told = now
            left = (now - begin) / (done - first) * (job.steps - done)
            val = f", val {record.val[-1][1]:.1%}" if record.val else ""
            loss = recent[-1] if recent else record.losses[-1][1]
            print(f"{job.title}: step {done} of {job.steps}, loss {loss:.3f}{val}, {left:.0f} s left", flush=True)


def _restore(session: Any, record: Record, checkpoint: Path) -> list[float]:
    """Go back to a checkpoint; returns the losses since the last entry of ``record``."""
    metadata = session.load_checkpoint(checkpoint)
    before = Record.from_line(metadata["record"])
    record.losses, record.val, record.seconds = before.losses, before.val, before.seconds
    if before.revision != record.revision:
        record.revision = f"{before.revision}, then {record.revision}"
    recent: list[float] = json.loads(metadata["recent"])
    return recent


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether this process alone holds ``path``, until it leaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _threads() -> int:
    return int(os.environ.get("FQT_NUM_THREADS") or len(os.sched_getaffinity(0)))


@functools.cache  # the code of this process, whatever is committed while it runs
def revision() -> str:
    """Commit of the repository, with ``+`` if the compiler or the tools differ from it."""
    commands = (
        ["git", "rev-parse", "--short=10", "HEAD"],
        ["git", "status", "--porcelain", ":/fqt_deploy", ":/tools"],
    )
    folder = Path(__file__).parent
    try:
        commit, changed = (
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"revision unknown: {error}", file=sys.stderr)
        return "unknown"
    return commit + ("+" if changed else "")
