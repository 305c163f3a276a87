"""Train an artifact in one process or, under torchrun, in several; say how fast and how well.

Examples::

    python -m tools.train_distributed one.fqt --data digits --steps 300 --seeds 5
    torchrun --nproc-per-node 2 -m tools.train_distributed half.fqt --data digits --steps 300 --seeds 5

The batch of all processes together is cut from the same samples in the same order, however many there are. Each seed is
a line of JSON: the loss over the last tenth of the steps and that of each of the first 50, accuracy on held-out
samples, the median seconds of a step and the bytes that a process sends in one. ``tools.exchange_table`` makes a table
of such lines, and ``tools.statistics_table`` one of runs with statistics of one process and of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fqt_deploy
from fqt_deploy.distributed import TorchGroup, join_group
from fqt_deploy.runtime.session import Session
from tools.accuracy.data import load_dataset
from tools.train_digits import Digits, load_digits
from tools.training import accuracy, batches, cosine

LARGEST = 10000
"""Upper bound of the samples that are taken of a file."""
WARM_UP = 3
SHOWN = 50


def load_data(name: str, session: Session) -> Digits:
    """The data called ``name``: ``digits``, ``noise`` of the step's shapes, or what ``tools.accuracy`` reads."""
    if name == "digits":
        return load_digits()
    generator = np.random.default_rng(0)
    if name == "noise":
        shape, samples = session.manifest.inputs[0].shape[1:], 4 * session.manifest.batch
        x = generator.standard_normal((samples, *shape)).astype(np.float32)
        y = generator.integers(0, session.manifest.classes or 2, samples)
        return Digits(x, y, x, y)
    read = load_dataset(name, Path(tempfile.gettempdir()) / "fqt-images")
    x, test_x = (part[:LARGEST].astype(np.float32) for part in (read.train_x, read.test_x))
    mean, std = x.mean(axis=(0, 2, 3), keepdims=True), x.std(axis=(0, 2, 3), keepdims=True)
    return Digits((x - mean) / std, read.train_y[:LARGEST], (test_x - mean) / std, read.test_y[:LARGEST])


def train(
    artifact: Path, data_name: str, steps: int, lr: float, seed: int, group: TorchGroup | None, held_out: int = LARGEST
) -> dict[str, Any]:
    """Train for ``steps`` steps; what came of it, accuracy on the first ``held_out`` of the samples for that."""
    session = fqt_deploy.load(artifact)
    session.seed = seed
    data = load_data(data_name, session)
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    if group is not None:
        session.join(group)
    batch, sent = session.manifest.batch, 0.0
    losses: list[float] = []
    seconds: list[float] = []
    for step, index in enumerate(batches(len(data.train_x), size * batch, steps, seed)):
        own = index[rank * batch : (rank + 1) * batch]
        x, y = data.train_x[own], data.train_y[own]
        session.lr = cosine(lr, step, steps)
        begin = time.perf_counter()
        losses.append(session.step(x, y))
        seconds.append(time.perf_counter() - begin)
    session.synchronize()
    if group is not None:
        sent = group.sent_bytes / steps
    options = session.manifest.options
    return {
        "artifact": artifact.name,
        "data": Path(data_name).stem,
        "recipe": options["recipe"],
        "wire": options.get("distributed", "off"),
        "batch_norm": options.get("batch_norm", "local"),
        "processes": size,
        "batch": size * batch,
        "seed": seed,
        "steps": steps,
        "last_loss": round(float(np.mean(losses[-max(1, steps // 10) :])), 5),
        "accuracy": round(accuracy(session, data.test_x[:held_out], data.test_y[:held_out]), 5) if rank == 0 else None,
        "step_s": round(statistics.median(seconds[WARM_UP:]), 6),
        "sent_bytes": round(sent),
        "losses": [round(loss, 4) for loss in losses[:SHOWN]],
    }


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", default="digits", help="digits, noise, or a file that tools.accuracy reads")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=LARGEST, help="samples to take the accuracy of, at most")
    arguments = parser.parse_args()
    group = join_group()
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        outcome = train(
            arguments.artifact, arguments.data, arguments.steps, arguments.lr, seed, group, arguments.held_out
        )
        if group is None or group.rank == 0:
            print(json.dumps(outcome), flush=True)
    if group is not None:
        group.close()


if __name__ == "__main__":
    main()
