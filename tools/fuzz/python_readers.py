"""Readers of files in Python: each takes a damaged one or refuses it with an ``FqtError``; all else is a finding."""

from __future__ import annotations

import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.data_file import read_data
from fqt_deploy.runtime.session import Session
from tools.fuzz import inputs

LIMIT = 20
"""Seconds that one input may take."""


class Hang(BaseException):
    """An input that takes longer than ``LIMIT``."""


@dataclass(frozen=True)
class Finding:
    """An input that was neither taken nor refused.

    Attributes:
        kind: the kind of reader.
        number: the number of the input.
        said: the traceback.
    """

    kind: str
    number: int
    said: str


def fuzz(good: inputs.Good, workspace: Path, kinds: list[str], numbers: range) -> tuple[Counter[str], list[Finding]]:
    """Give the readers of ``kinds``, in turn, the inputs with these ``numbers``.

    Returns:
        How many were taken, and refused with each code, by kind; the findings.
    """
    readers = _readers(good, workspace)
    outcomes: Counter[str] = Counter()
    findings = []
    for number in numbers:
        kind = kinds[number % len(kinds)]
        (workspace / "number").write_text(f"{kind} {number}")
        try:
            with _limited():
                readers[kind](random.Random(f"{kind} {number}"))
            outcomes[f"{kind} taken"] += 1
        except FqtError as error:
            error.render().encode()  # it can be shown
            outcomes[f"{kind} {error.code}"] += 1
        except (Exception, Hang):  # noqa: BLE001 - whatever it is, it is what is looked for
            findings.append(Finding(kind, number, traceback.format_exc()))
    return outcomes, findings


def _readers(good: inputs.Good, workspace: Path) -> dict[str, Callable[[random.Random], None]]:
    session = fqt_deploy.load(good.artifact)
    manifest = session.manifest

    def bundle(random_: random.Random) -> None:
        inputs.damaged_bundle(good, workspace / "bundle", random_)
        use(fqt_deploy.load(workspace / "bundle"))

    def checkpoint(random_: random.Random) -> None:
        inputs.damaged_checkpoint(good, workspace / "checkpoint", random_)
        before = _everything(session)
        try:
            session.load_checkpoint(workspace / "checkpoint")
        except FqtError:
            assert _everything(session) == before, "a refused checkpoint changed something"
            raise
        use(session)
        session.load_checkpoint(good.checkpoint)

    def npz(random_: random.Random) -> None:
        inputs.damaged_npz(good, workspace / "data.npz", random_)
        data = read_data(workspace / "data.npz", manifest)
        session.step(data.rows(slice(manifest.batch)))
        session.load_checkpoint(good.checkpoint)

    def weights(random_: random.Random) -> None:
        from torch import nn

        from fqt_deploy.capture.load_weights import load_weights

        load_weights(nn.Linear(3, 2), inputs.damaged_weights(good, workspace / "weights", random_))

    def onnx(random_: random.Random) -> None:
        from fqt_deploy.onnx_session import load_onnx

        assert good.onnx is not None
        inputs.damaged_file(good.onnx, workspace / "step.onnx", random_)
        use(load_onnx(workspace / "step.onnx"), predict=False)

    def log(random_: random.Random) -> None:
        from fqt_deploy.targets.tuning_log import read_tiles, tiles_of

        inputs.damaged_log(good, workspace / "log.jsonl", random_)
        tiles_of("znver4", read_tiles(workspace / "log.jsonl"))

    return {"bundle": bundle, "checkpoint": checkpoint, "npz": npz, "weights": weights, "onnx": onnx, "log": log}


def use(session: Session, *, predict: bool = True) -> None:
    """A step and a prediction, on indices that every model takes: 0, or the least that the manifest allows above it."""
    specs = session.manifest.inputs
    if max(spec.size for spec in specs) > 2**24:  # what is larger, nobody has
        return
    least = {spec.name: 0 if spec.values is None else min(max(spec.values.low, 0), 9) for spec in specs}
    batch = {spec.name: np.full(spec.shape, least[spec.name], spec.dtype) for spec in specs}
    session.step(batch)
    if predict:
        session.predict({spec.name: batch[spec.name][:1] for spec in session.manifest.model_inputs})


def _everything(session: Session) -> tuple[object, ...]:
    state = {name: array.tobytes() for name, array in session._fetched().items()}
    return session.lr, session.seed, session.step_count, state


@contextmanager
def _limited() -> Iterator[None]:
    def give_up(_: int, __: FrameType | None) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
