"""Kill processes of a distributed training with SIGKILL at random moments: ``python -m tools.kill_ranks ARTIFACT``.

Each run of ``python -m fqt_deploy.train`` in two processes goes on from the checkpoint of the one before, and one of
its processes is killed: at any moment, also while it starts, where one torchrun has started both; once it trains, where
two have, as on two machines, so that none of them sees both. The other process must end within ten seconds, with code
FQT603 if it trained. In the end the state is compared, bit for bit, with that of a run that nobody killed.

Each kill is a line of JSON in the folder. A tool that has ended, as after ``--minutes``, goes on there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from tools.train_digits import load_digits

LIMIT_S = 10.0
"""Seconds within which a run must end."""
START_S = 120.0
"""Seconds that a run may take to its first checkpoint."""
LONGEST_LIFE_S = 14.0
"""Upper bound of the seconds from a process's start to its end."""
LONGEST_TRAINING_S = 1.5
"""The same from the first checkpoint on, where the other process has another launcher."""
CODE = "FQT603"
RESULTS = "kills.jsonl"


@dataclass(frozen=True)
class Kill:
    """What came of one run.

    Attributes:
        launchers: number of torchruns that have started it.
        victim: which of the two processes was killed.
        trained: whether the run had written a checkpoint by then.
        seconds: from the kill to the end of the run.
        said: whether the other process ended with the code.
        problem: what was wrong; empty if nothing was.
    """

    launchers: int
    victim: int
    trained: bool
    seconds: float
    said: bool
    problem: str


@dataclass
class Run:
    """Two processes that train, and what has started them.

    Attributes:
        launchers: one torchrun for both processes, or one for each.
        outputs: files of what they say.
    """

    launchers: list[subprocess.Popen[bytes]]
    outputs: list[Path]

    @property
    def goes_on(self) -> bool:
        """Whether one of the launchers has not ended."""
        return any(launcher.poll() is None for launcher in self.launchers)

    def workers(self) -> list[int]:
        """The processes that train."""
        return [worker for launcher in self.launchers for worker in workers_of(launcher.pid)]

    def said(self) -> str:
        """All that was said."""
        return "\n".join(path.read_text(errors="replace") for path in self.outputs)


def workers_of(launcher: int) -> list[int]:
    """The processes that a torchrun has started, in order."""
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


@contextmanager
def started(artifact: Path, data: Path, checkpoint: Path, epochs: int, launchers: int = 1) -> Iterator[Run]:
    """Two processes that train for ``epochs`` epochs, from the checkpoint if there is one; at the end none is left."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(launchers),
        "--nproc-per-node", str(2 // launchers), "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}",
        "-m", "fqt_deploy.train", str(artifact), "--data", str(data),
        "--checkpoint", str(checkpoint), "--epochs", str(epochs), *(["--resume"] if checkpoint.exists() else []),
    ]  # fmt: skip
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "FQT_NUM_THREADS", "TVM_NUM_THREADS")}
    run = Run([], [checkpoint.with_suffix(f".{number}.txt") for number in range(launchers)])
    for path in run.outputs:
        with path.open("wb") as output:
            run.launchers.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **threads},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    try:
        yield run
    finally:
        left = run.workers()
        for process in [*(launcher.pid for launcher in run.launchers if launcher.poll() is None), *left]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for launcher in run.launchers:
            launcher.wait()


def kill_once(run: Run, checkpoint: Path, random_: random.Random) -> Kill:
    """Kill one of the processes of ``run``, and note how it ends."""
    launchers = len(run.launchers)
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0

    def trained() -> bool:
        return checkpoint.exists() and checkpoint.stat().st_mtime_ns > before

    _wait_until(lambda: not run.goes_on or len(run.workers()) == 2)
    if launchers == 2:
        _wait_until(lambda: not run.goes_on or trained())
    time.sleep(random_.uniform(0, LONGEST_LIFE_S if launchers == 1 else LONGEST_TRAINING_S))
    workers, victim, late = run.workers(), random_.randrange(2), trained()
    if len(workers) != 2:
        return Kill(launchers, victim, late, 0.0, False, f"{len(workers)} processes: {run.said()[-2000:]}")
    os.kill(workers[victim], signal.SIGKILL)
    begin = time.monotonic()
    _wait_until(lambda: not run.goes_on)
    seconds, said = round(time.monotonic() - begin, 2), CODE in run.said()
    status = [launcher.poll() for launcher in run.launchers]
    fine = seconds <= LIMIT_S and all(status) and (said or not late)
    problem = "" if fine else f"after {seconds} s, status {status}: {run.said()[-2000:]}"
    return Kill(launchers, victim, late, seconds, said, problem)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def epochs_of(checkpoint: Path) -> int:
    """Number of epochs that the run of a checkpoint has done."""
    with safe_open(checkpoint, "numpy") as file:
        place = json.loads(file.metadata()["place"])
    if place["samples"]:
        raise ValueError(f"the checkpoint lies within an epoch: {place}")
    return int(place["epoch"])


def differences(artifact: Path, data: Path, checkpoint: Path) -> tuple[int, list[str]]:
    """Epochs of a checkpoint, and what is different in a run of as many that nobody killed."""
    epochs, whole = epochs_of(checkpoint), checkpoint.with_name("whole.safetensors")
    whole.unlink(missing_ok=True)
    with started(artifact, data, whole, epochs) as run:
        for launcher in run.launchers:
            launcher.wait()
        if not whole.exists() or epochs_of(whole) != epochs:
            raise RuntimeError(run.said()[-2000:])
    killed, alone = load_file(checkpoint), load_file(whole)
    assert killed.keys() == alone.keys()
    return epochs, [name for name in alone if not np.array_equal(alone[name], killed[name])]


def kill_all(artifact: Path, folder: Path, kills: int, seed: int, minutes: float) -> int:
    """Kill until so many kills are in the folder, which may not exist yet, or the time is over; the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    data, checkpoint, results = folder / "digits.npz", folder / "killed.safetensors", folder / RESULTS
    if not data.exists():
        digits = load_digits()
        np.savez(data, x=digits.train_x, y=digits.train_y)
    done = [Kill(**json.loads(line)) for line in results.read_text().splitlines()] if results.exists() else []
    begin = time.monotonic()
    while len(done) < kills:
        if time.monotonic() - begin > 60 * minutes:
            return 0
        random_ = random.Random(f"{seed} {len(done)}")
        with started(artifact, data, checkpoint, 10**6, launchers=1 + len(done) % 2) as run:
            done.append(kill_once(run, checkpoint, random_))
        line = json.dumps(asdict(done[-1]))
        print(line, file=sys.stderr, flush=True)
        with results.open("a") as file:
            file.write(line + "\n")
    epochs, different = differences(artifact, data, checkpoint)
    problems = [kill.problem for kill in done if kill.problem]
    problems += [f"{name} differs from a run that nobody killed" for name in different]
    outcome = {
        "kills": len(done),
        "while_training": sum(kill.trained for kill in done),
        "longest_s": {number: max(k.seconds for k in done if k.launchers == number) for number in (1, 2)},
        "epochs": epochs,
        "problems": problems,
    }
    print(json.dumps(outcome))
    return 1 if problems else 0


def main() -> int:
    """Run the tool; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="the digits example, compiled with --distributed")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it goes on [default: a temporary one]")
    parser.add_argument("--minutes", type=float, default=60.0, help="no kill follows after so many [default: 60]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return kill_all(
            arguments.artifact, arguments.folder or Path(name), arguments.kills, arguments.seed, arguments.minutes
        )


if __name__ == "__main__":
    sys.exit(main())
