"""Seconds of a step in one process and in two on one machine, and where they go: ``python -m tools.bench_distributed``.

Example::

    fqt-compile examples/resnet18_cifar.py --batch 64 -o one.fqt
    fqt-compile examples/resnet18_cifar.py --batch 64 --distributed fp32 -o split.fqt
    fqt-compile examples/resnet18_cifar.py --batch 32 --distributed fp32 -o half.fqt
    fqt-compile examples/resnet18_cifar.py --batch 32 --distributed 4-bit -o codes.fqt
    python -m tools.bench_distributed --one one.fqt --split split.fqt --half half.fqt codes.fqt

All processes live from the beginning to the end; one contender after the other runs a few steps, and again, in as many
rounds as asked for. Each number is the median over the rounds of the median over the steps of one turn, of the slower
process where there are two. ``others`` is how much of a core other processes took meanwhile: a turn in which they took
more than a twentieth is repeated twice, and the quietest one counts. ``cpu`` is processor time of one process
in a step, which depends less on them. Contenders:

- ``one``: one process with two threads; ``split``: the same, compiled for several processes.
- ``alone``: one process with one thread, half of the batch: the first of ``half``, as if there were no other.
- ``beside``: two of these at the same time, which exchange nothing: what two processes could reach without an exchange.
- ``exchange``: two of these that exchange their gradients, with the seconds that a process spends in beginning
  exchanges, in waiting for them, in statistics of batch normalization and in averaging the loss, and the processor
  time of gloo's threads.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

QUIET, TRIES = 0.05, 3
"""How much of a core others may take in a turn, and how often it is repeated where they take more."""
PARTS = ("start", "finish", "statistics", "mean_loss")
"""What a process does for an exchange, by the names of the functions that do it."""


class Stopwatch:
    """Seconds spent in functions of an object, by name."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def watch(self, owner: Any, name: str) -> None:
        """Measure every call of the function ``name`` of ``owner`` from now on."""
        function = getattr(owner, name)

        def measured(*arguments: Any) -> Any:
            begin = time.perf_counter()
            result = function(*arguments)
            self.seconds[name] += time.perf_counter() - begin
            return result

        setattr(owner, name, measured)

    def take(self) -> dict[str, float]:
        """The seconds since the last time."""
        taken, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        return taken


def work(artifact: Path, joins: bool) -> None:
    """Run as many steps as each line of the standard input says; the answer is a line of JSON."""
    import fqt_deploy
    from fqt_deploy.distributed import join_group

    session = fqt_deploy.load(artifact)
    watch, group = Stopwatch(), None
    if joins:
        group = join_group()
        assert group is not None
        session.join(group)
        watch.watch(session._exchange, "start")
        watch.watch(session._exchange, "finish")
        watch.watch(session._exchange, "statistics")
        watch.watch(group, "mean_loss")
    random = np.random.default_rng(0 if group is None else group.rank)
    image, labels = session.manifest.inputs
    x = random.standard_normal(image.shape).astype(np.float32)
    y = random.integers(0, session.manifest.classes or 2, labels.shape)
    session.step(x, y)
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, parts, steps, gloo = [], [], int(line), _gloo_seconds()
        for _ in range(steps):
            watch.take()
            begin, cpu = time.perf_counter(), time.process_time()
            session.step(x, y)
            seconds.append(time.perf_counter() - begin)
            parts.append({**watch.take(), "cpu": time.process_time() - cpu})
        medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        medians["gloo"] = (_gloo_seconds() - gloo) / steps
        print(json.dumps({"step": statistics.median(seconds), **medians}), flush=True)
    if group is not None:
        group.close()


def _processor_seconds(stat: Path) -> float:
    """Processor time of a process or thread, from its ``stat`` file."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _gloo_seconds() -> float:
    """Processor time of gloo's threads in this process so far."""
    threads = [path for path in Path("/proc/self/task").iterdir() if "gloo" in (path / "comm").read_text()]
    return sum(_processor_seconds(path / "stat") for path in threads)


@dataclass
class Contender:
    """Processes that run steps at the same time.

    Attributes:
        name: what it is called.
        processes: its processes.
        found: what the slower of them answered in each turn.
    """

    name: str
    processes: list[subprocess.Popen[str]]
    found: list[dict[str, float]]

    def wait(self) -> None:
        """Wait until all processes are ready."""
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"a process of {self.name} has ended")

    def turn(self, steps: int) -> None:
        """Run so many steps in every process, again while others use the cores."""
        tries: list[dict[str, float]] = []
        while not tries or (tries[-1]["others"] > QUIET and len(tries) < TRIES):
            tries.append(self._steps(steps))
        self.found.append(min(tries, key=lambda found: found["others"]))

    def _steps(self, steps: int) -> dict[str, float]:
        """What the slower process answers."""
        begin, before, own = time.perf_counter(), _busy_seconds(), self._own_seconds()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            answers.append(json.loads(process.stdout.readline()))
        others = _busy_seconds() - before - (self._own_seconds() - own)
        slower: dict[str, float] = max(answers, key=lambda answer: float(answer["step"]))
        return {**slower, "others": max(0.0, others / (time.perf_counter() - begin))}

    def _own_seconds(self) -> float:
        """Processor time of the processes so far."""
        return sum(_processor_seconds(Path(f"/proc/{process.pid}/stat")) for process in self.processes)

    def medians(self) -> dict[str, float]:
        """The median of each number over all turns."""
        return {name: round(statistics.median(turn[name] for turn in self.found), 5) for name in self.found[0]}


def _busy_seconds() -> float:
    """Seconds that all cores together were not idle since the machine started."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def contender(name: str, artifact: Path, processes: int, threads: int, *, joins: bool = False) -> Contender:
    """Start the processes of one contender."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "FQT_NUM_THREADS", "TVM_NUM_THREADS")}
    command = [
        sys.executable,
        "-m",
        "tools.bench_distributed",
        "--work",
        str(artifact),
        *(["--joins"] if joins else []),
    ]
    return Contender(
        name,
        [
            subprocess.Popen(
                command,
                env={**environment, "RANK": str(rank)} if joins else environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for rank in range(processes)
        ],
        [],
    )


def measure(contenders: list[Contender], rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """The medians of all contenders, which take turns."""
    try:
        for each in contenders:
            each.wait()
        for _ in range(rounds):
            for each in contenders:
                each.turn(steps)
        return {each.name: each.medians() for each in contenders}
    finally:
        for each in contenders:
            for process in each.processes:
                process.kill()
                process.wait()


def main() -> None:
    """Run the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, help="compiled for the whole batch")
    parser.add_argument("--split", type=Path, nargs="*", default=[], help="the same, for several processes")
    parser.add_argument("--half", type=Path, nargs="*", default=[], help="for half of the batch, for several processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--joins", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        work(arguments.work, arguments.joins)
        return
    contenders = [contender("one", arguments.one, 1, 2)]
    contenders += [contender(f"split {path.stem}", path, 1, 2) for path in arguments.split]
    for number, path in enumerate(arguments.half):
        if number == 0:
            contenders.append(contender(f"alone {path.stem}", path, 1, 1))
            contenders.append(contender(f"beside {path.stem}", path, 2, 1))
        contenders.append(contender(f"exchange {path.stem}", path, 2, 1, joins=True))
    found = measure(contenders, arguments.rounds, arguments.steps)
    whole = found["one"]["step"]
    for name, medians in found.items():
        parts = {part: seconds for part, seconds in medians.items() if seconds and part != "step"}
        print(
            json.dumps({"name": name, "step_s": medians["step"], "speed": round(whole / medians["step"], 3), **parts})
        )


if __name__ == "__main__":
    main()
