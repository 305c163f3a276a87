"""The command fqt-train on folders of arrays: augmentation, validation, logs, and runs that go on where they ended."""

from __future__ import annotations

import csv
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.cli_train import main
from fqt_deploy.runtime.preparation import Preparation, Prepared
from fqt_deploy.runtime.sources.open_source import open_source
from fqt_deploy.runtime.training import Progress, Schedule, train

SAMPLES = 44
"""More than five batches of eight: the rest of each epoch is left out."""


def write(folder: Path, images: Any, labels: Any) -> Path:
    """A folder of arrays, the images as bytes."""
    folder.mkdir()
    np.save(folder / "x.npy", ((images.numpy() + 1) * 8 * 15).astype(np.uint8))
    np.save(folder / "y.npy", labels.numpy())
    return folder


@pytest.fixture
def run(digits_artifact: Path, digits: Any, tmp_path: Path) -> Any:
    """Calls the command on a copy of the digits artifact, with 44 images to train on and 30 others."""
    images, labels = digits
    shutil.copytree(digits_artifact, tmp_path / "digits.fqt")
    write(tmp_path / "train", images[:SAMPLES], labels[:SAMPLES])
    write(tmp_path / "test", images[SAMPLES : SAMPLES + 30], labels[SAMPLES : SAMPLES + 30])

    def call(*arguments: Any) -> Any:
        given = [tmp_path / "digits.fqt", "--mean", "0.5", "--std", "0.5", *arguments]
        return CliRunner().invoke(main, [str(argument) for argument in given])

    return call


def test_validation_logs_and_the_best_checkpoint(run: Any, tmp_path: Path) -> None:
    data = ("--data", tmp_path / "train", "--eval-data", tmp_path / "test")
    logs = ("--log", tmp_path / "log.csv", "--tensorboard", tmp_path / "board")
    arguments = (*data, *logs, "--epochs", 3, "--warmup", 5, "--schedule", "cosine")
    result = run(*arguments, "--predict", tmp_path / "logits.npy")
    assert result.exit_code == 0, result.output
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["5", "10", "15"]
    accuracies = [float(row["eval_accuracy"]) for row in rows]
    session = fqt_deploy.load(tmp_path / "digits.fqt")
    session.load_checkpoint(tmp_path / "digits.fqt" / "best.safetensors")
    assert session.step_count == 5 * (int(np.argmax(accuracies)) + 1)
    session.load_checkpoint(tmp_path / "digits.fqt" / "checkpoint.safetensors")
    assert session.step_count == 15
    x = (np.load(tmp_path / "test" / "x.npy").astype(np.float32) / 255 - 0.5) / 0.5
    logits = np.load(tmp_path / "logits.npy")
    assert np.array_equal(logits, session.predict(x))
    right = (logits.argmax(1) == np.load(tmp_path / "test" / "y.npy")).mean()
    assert f"accuracy {100 * right:.2f} % on 30 samples" in result.output
    assert accuracies[-1] == pytest.approx(right, rel=1e-4)
    assert len(list((tmp_path / "board").iterdir())) == 1

    (tmp_path / "logits.npy").unlink()
    checkpoint = tmp_path / "digits.fqt" / "checkpoint.safetensors"
    before = checkpoint.read_bytes()
    predicted = run("--eval-data", tmp_path / "test", "--predict", tmp_path / "logits.npy", "--resume")
    assert predicted.exit_code == 0, predicted.output
    assert np.array_equal(np.load(tmp_path / "logits.npy"), logits)
    assert checkpoint.read_bytes() == before


def test_patience_ends_a_run_and_is_kept_by_checkpoints(run: Any, tmp_path: Path) -> None:
    """Without learning only running statistics move, and soon nothing is better; the second run knows of the first."""
    arguments = (
        "--data",
        tmp_path / "train",
        "--eval-data",
        tmp_path / "test",
        "--lr",
        0,
        "--log",
        tmp_path / "log.csv",
    )
    assert run(*arguments, "--epochs", 2).exit_code == 0
    result = run(*arguments, "--epochs", 60, "--patience", 3, "--resume")
    assert result.exit_code == 0, result.output
    assert "3 epochs without a better one" in result.output
    with (tmp_path / "log.csv").open() as file:
        accuracies = [float(row["eval_accuracy"]) for row in csv.DictReader(file)]
    assert len(accuracies) == int(np.argmax(accuracies)) + 1 + 3


def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(run: Any, tmp_path: Path) -> None:
    artifact = tmp_path / "digits.fqt"

    def losses(checkpoint: Path, stop: int | None = None, *, resume: bool = False) -> list[float]:
        session = fqt_deploy.load(artifact)
        if resume:
            session.load_checkpoint(checkpoint)
        source, found = open_source(tmp_path / "train", session.manifest), []
        data = Prepared(source, Preparation((0.5,), (0.5,), flip=True, crop=1), session.manifest, "train", session.seed)
        progress = Progress(show=lambda *told: found.append(told), stopped=lambda: len(found) == stop)
        train(
            session, data, epochs=3, schedule=Schedule(cosine=True, warmup=4), checkpoint=checkpoint, progress=progress
        )
        return found

    whole = losses(tmp_path / "whole.safetensors")
    assert [step for step, *_ in whole] == list(range(1, 16))
    first = losses(tmp_path / "half.safetensors", 7)
    assert first + losses(tmp_path / "half.safetensors", resume=True) == whole
    halves, at_once = (load_file(tmp_path / f"{name}.safetensors") for name in ("half", "whole"))
    assert halves.keys() == at_once.keys()
    assert all(np.array_equal(halves[name], at_once[name]) for name in halves)


@pytest.mark.parametrize("stop", [7, 10, 15])
def test_a_stopped_run_is_evaluated_and_logged_as_one_that_nobody_stopped(
    run: Any, tmp_path: Path, monkeypatch: Any, stop: int
) -> None:
    """Also where the last step of an epoch, or of all, is the one in which it was stopped."""
    artifact = tmp_path / "digits.fqt"
    data = ("--data", tmp_path / "train", "--eval-data", tmp_path / "test", "--epochs", 3, "--warmup", 4)

    def files(name: str) -> tuple[Any, ...]:
        kept = ("--checkpoint", artifact / f"{name}.checkpoint", "--best", artifact / f"{name}.best")
        return (*data, *kept, "--log", tmp_path / f"{name}.csv", "--schedule", "cosine")

    assert run(*files("whole")).exit_code == 0
    plain = fqt_deploy.Session.step

    def stopped(self: Any, *arguments: Any, **options: Any) -> float:
        loss = plain(self, *arguments, **options)
        if self.step_count == stop:
            signal.raise_signal(signal.SIGTERM)
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(fqt_deploy.Session, "step", stopped)
        assert run(*files("stopped")).exit_code == 143
    result = run(*files("stopped"), "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "stopped.csv").read_text() == (tmp_path / "whole.csv").read_text()
    for kind in ("checkpoint", "best"):
        whole, resumed = (load_file(artifact / f"{name}.{kind}") for name in ("whole", "stopped"))
        assert all(np.array_equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "FQT510"),
        (["--data", "train", "--mean", "a"], "FQT202"),
        (["--data", "train", "--std", "1,2"], "FQT202"),
        (["--data", "train", "--crop", "2", "--tensorboard", "train/x.npy"], "FQT508"),
    ],
)
def test_mistakes(run: Any, tmp_path: Path, monkeypatch: Any, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, f"error[{said}]" in result.output) == (1, True), result.output
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_usage(run: Any) -> None:
    assert "give --data to train on" in run("--epochs", 2).output
    assert "--predict needs --eval-data" in run("--data", "train", "--predict", "out.npy").output


def test_rates_rise_then_fall() -> None:
    schedule = Schedule(cosine=True, warmup=3)
    factors = [schedule.factor(done, 11) for done in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors == sorted(factors[:4]) + sorted(factors[4:], reverse=True)
    assert factors[7] == pytest.approx(0.5)
    assert {Schedule(warmup=0).factor(done, 5) for done in range(5)} == {1.0}
