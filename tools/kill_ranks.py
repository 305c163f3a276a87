"""Kill processes of a distributed training with SIGKILL at random moments: ``python -m tools.kill_ranks ARTIFACT``.

Each run of ``torchrun --nproc-per-node 2 -m fqt_deploy.train`` goes on from the checkpoint of the one before, and one
of its processes is killed at random. The others must end within ten seconds with code FQT603. In the end the state is
compared, bit for bit, with that of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tools.train_digits import load_digits

LIMIT_S = 10.0
"""Seconds within which a run must end."""
START_S = 120.0
CODE = "FQT603"


@dataclass
class Kills:
    """What came of the runs that were killed.

    Attributes:
        seconds: from each kill to the end of the run.
        problems: runs that ended too late, or without a code.
    """

    seconds: list[float]
    problems: list[str]


def start(artifact: Path, data: Path, checkpoint: Path, epochs: int) -> subprocess.Popen[str]:
    """Start two processes that train for ``epochs`` epochs, from the checkpoint if there is one."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
        "--rdzv-endpoint", "localhost:0", "-m", "fqt_deploy.train", str(artifact), "--data", str(data),
        "--checkpoint", str(checkpoint), "--epochs", str(epochs), *(["--resume"] if checkpoint.exists() else []),
    ]  # fmt: skip
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "FQT_NUM_THREADS", "TVM_NUM_THREADS")}
    return subprocess.Popen(
        command, env={**os.environ, **threads}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def workers_of(launcher: int) -> list[int]:
    """The processes that torchrun has started, in order."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except (OSError, IndexError):  # it has just ended
            continue
        if parent == launcher and "fqt_deploy.train" in command:
            found.append(int(folder.name))
    return sorted(found)


def kill_once(process: subprocess.Popen[str], checkpoint: Path, random_: random.Random, kills: Kills) -> None:
    """Kill one of the processes once a new checkpoint is there, and note how the run ends."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns > before:
            break
        time.sleep(0.05)
    time.sleep(random_.uniform(0, 0.5))
    found = workers_of(process.pid)
    if len(found) != 2:
        process.kill()
        kills.problems.append(f"{len(found)} processes: {process.communicate()[0][-2000:]}")
        return
    os.kill(random_.choice(found), signal.SIGKILL)
    begin = time.monotonic()
    output, _ = process.communicate(timeout=START_S)
    kills.seconds.append(time.monotonic() - begin)
    if kills.seconds[-1] > LIMIT_S or CODE not in output or process.returncode == 0:
        kills.problems.append(f"{kills.seconds[-1]:.1f} s, status {process.returncode}: {output[-2000:]}")


def main() -> int:
    """Run the tool; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="the digits example, compiled with --distributed")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    kills, random_ = Kills([], []), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = load_digits()
        np.savez(folder / "digits.npz", x=digits.train_x, y=digits.train_y)
        checkpoint = folder / "killed.safetensors"
        for number in range(arguments.kills):
            kill_once(start(arguments.artifact, folder / "digits.npz", checkpoint, 10**6), checkpoint, random_, kills)
            print(f"{number + 1}: {kills.seconds[-1:]} {kills.problems[-1:]}", file=sys.stderr, flush=True)
        from safetensors import safe_open

        with safe_open(checkpoint, "numpy") as file:
            epochs = json.loads(file.metadata()["place"])["epoch"]
        whole = folder / "whole.safetensors"
        start(arguments.artifact, folder / "digits.npz", whole, epochs).communicate()
        killed, alone = load_file(checkpoint), load_file(whole)
        different = [n for n in alone if not np.array_equal(alone[n], killed[n])]
    kills.problems += [f"{name} differs from a run that nobody killed" for name in different]
    outcome = {
        "kills": len(kills.seconds),
        "longest_s": round(max(kills.seconds), 2),
        "epochs": epochs,
        "problems": kills.problems,
    }
    print(json.dumps(outcome))
    return 1 if kills.problems else 0


if __name__ == "__main__":
    sys.exit(main())
