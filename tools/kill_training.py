"""Kill training processes with SIGKILL at random moments: ``python -m tools.kill_training --kills 1000``.

A run of ``fqt-train``, or of a C program, is killed again and again and resumed from its checkpoint. After every kill
the checkpoint is whole, and of a step at least as late as before; each time a run is through, its state is, bit for
bit, that of a run that nobody killed; and in the end no unfinished file is left.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fqt_deploy
from fqt_deploy import cli_train
from fqt_deploy.runtime.session import Session

EPOCHS = 50

Run = Callable[[Path, bool], None]
"""A function that trains up to the last step, in a forked process: for a checkpoint, and whether to resume from it."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of the runs that were killed.

    Attributes:
        kills: number of processes that were killed.
        while_saving: number of those that left an unfinished checkpoint behind.
        runs: that were through in spite of kills.
        problems: what was lost or differs; none if all is well.
    """

    kills: int
    while_saving: int
    runs: int
    problems: tuple[str, ...]


def kill_and_resume(run: Run, session: Session, folder: Path, *, kills: int, steps: int, seed: int) -> Outcome:
    """Kill ``run`` so many times.

    Args:
        run: what is killed.
        session: of the same artifact, to read checkpoints; it never computes, so that this process may be forked.
        folder: the folder to write checkpoints to.
        kills: how many times.
        steps: number of steps of a whole run.
        seed: the seed of the moments.
    """
    random_ = random.Random(seed)
    checkpoint = folder / "checkpoint"
    begin = time.perf_counter()
    _wait(_start(run, folder / "whole", False))
    duration = time.perf_counter() - begin
    whole = _state(session, folder / "whole")
    problems: list[str] = []
    killed = while_saving = runs = last = 0
    while killed < kills:
        process = _start(run, checkpoint, last > 0)
        time.sleep(duration * random_.uniform(0.0, 1.0))
        os.kill(process, signal.SIGKILL)
        ended_by = _wait(process)
        killed += ended_by == -signal.SIGKILL
        while_saving += any(path.name.endswith(".part") for path in folder.iterdir())
        if ended_by not in (0, -signal.SIGKILL):
            problems.append(f"after {killed} kills: a run failed with {ended_by}")
        if not checkpoint.exists():
            if last:
                problems.append(f"after {killed} kills: the checkpoint is gone")
            continue
        try:
            state = _state(session, checkpoint)
        except fqt_deploy.FqtError as error:
            problems.append(f"after {killed} kills: {error}")
            break
        if session.step_count < last:
            problems.append(f"after {killed} kills: the checkpoint is of step {session.step_count}, not {last}")
        last = session.step_count
        if last == steps:
            runs += 1
            problems += [f"{name} differs in run {runs}" for name in whole if state[name] != whole[name]]
            checkpoint.unlink()
            last = 0
    if ended_by := _wait(_start(run, checkpoint, last > 0)):
        problems.append(f"the last run failed with {ended_by}")
    elif _state(session, checkpoint) != whole:
        problems.append("the last run differs")
    left = [path.name for path in folder.iterdir() if path.name not in ("checkpoint", "whole")]
    return Outcome(killed, while_saving, runs, (*problems, *(f"{name} is left behind" for name in left)))


def _start(run: Run, checkpoint: Path, resume: bool) -> int:
    """A forked process that does ``run`` and ends with its code."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            run(checkpoint, resume)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - this process ends here, whatever it is
            traceback.print_exc()
        os._exit(code)
    return process


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _state(session: Session, path: Path) -> dict[str, bytes]:
    session.load_checkpoint(path)
    return {name: array.tobytes() for name, array in session.tensors().items()}


def train_in_python(artifact: Path, data: Path) -> Run:
    """Train as ``fqt-train`` does, without the start of the interpreter."""
    options = [str(artifact), "--data", str(data), "--epochs", str(EPOCHS)]

    def run(checkpoint: Path, resume: bool) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        cli_train.main([*options, "--checkpoint", str(checkpoint), *(["--resume"] if resume else [])])

    return run


def train_in_c(program: Path, artifact: Path, rows: Path, steps: int) -> Run:
    """Train as ``kill_training.c`` does, which resumes where there is a checkpoint."""

    def run(checkpoint: Path, _: bool) -> None:
        os.execv(program, [str(program), str(artifact), str(rows), str(steps), str(checkpoint)])

    return run


def build_program(folder: Path, c_api: Path | None) -> Path:
    """Build ``kill_training.c`` with the C interface ``c_api``, which is built too if there is none."""
    from fqt_deploy.packaging.build_c_api import build_c_api
    from fqt_deploy.targets.toolchain import native_toolchain

    if c_api is None:
        c_api = folder / "c-api"
        build_c_api(c_api, native_toolchain())
    lib, program, source = c_api / "lib", folder / "train", Path(__file__).with_suffix(".c")
    flags = ["-std=gnu99", "-I", str(c_api / "include"), "-L", str(lib), f"-Wl,-rpath,{lib}"]
    subprocess.run(["cc", str(source), *flags, "-lfqt_runtime", "-o", str(program)], check=True)
    return program


def write_batches(path: Path, data: Path, batch: int) -> None:
    """The raw data file of the C program, from an npz file."""
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    pieces = (part[i : i + batch].tobytes() for i in range(0, len(x) - batch + 1, batch) for part in (x, y))
    path.write_bytes(b"".join(pieces))


def _prepare(folder: Path, artifact: Path | None) -> None:
    from tools.fuzz.good_files import make_good_files

    make_good_files(folder, onnx=False, artifact=artifact)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in each language [default: 100]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--artifact", type=Path, help="to train [default: a small model, compiled for this]")
    parser.add_argument("--c-api", type=Path, help="what make c-api built [default: built for this]")
    parser.add_argument("--only", choices=["python", "c"], help="one language alone")
    arguments = parser.parse_args()
    os.environ.setdefault("FQT_NUM_THREADS", "1")
    failed = False
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        # In a process of its own, as it computes: this one forks.
        prepare = multiprocessing.get_context("spawn").Process(
            target=_prepare, args=(folder / "good", arguments.artifact)
        )
        prepare.start()
        prepare.join()
        artifact, data = arguments.artifact or folder / "good" / "step.fqt", folder / "good" / "data.npz"
        session = fqt_deploy.load(artifact)
        steps = EPOCHS * 4
        runs: dict[str, Run] = {}
        if arguments.only != "c":
            runs["python"] = train_in_python(artifact, data)
        if arguments.only != "python":
            write_batches(folder / "rows", data, session.manifest.batch)
            runs["c"] = train_in_c(build_program(folder, arguments.c_api), artifact, folder / "rows", steps)
        for language, run in runs.items():
            (folder / language).mkdir()
            outcome = kill_and_resume(
                run, session, folder / language, kills=arguments.kills, steps=steps, seed=arguments.seed
            )
            print(
                f"{language}: {outcome.kills} kills, {outcome.while_saving} of them while a checkpoint was written, "
                f"{outcome.runs} whole runs"
            )
            print("\n".join(outcome.problems) or "nothing lost")
            failed = failed or bool(outcome.problems)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
