"""Statistics of training: what they say of a step is what PyTorch's optimizer would have seen."""

import csv
import math

import numpy as np
import pytest
from click.testing import CliRunner

import fqt_deploy
from fqt_deploy.cli_train import main
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.watch import SAMPLE, TrainingWatch, _places
from fqt_deploy.runtime.watch_log import read_watch_log


def steps(artifact, digits, every, count):
    """The rows of ``count`` steps, and the session; before each step a copy of the state is kept, too."""
    session = fqt_deploy.load(artifact)
    watch = TrainingWatch(session, every, {session.manifest.layers[0].path: 0.5})
    images, labels = (tensor.numpy() for tensor in digits)
    batch = session.manifest.batch
    for i in range(count):
        before = {name: array.copy() for name, array in session.tensors().items()}
        watch.begin()
        session.step(images[i * batch : (i + 1) * batch], labels[i * batch : (i + 1) * batch])
        yield watch.end(), before, session


def test_norms_and_flips_are_those_of_the_state(digits_artifact, digits):
    signs = {}
    for rows, before, session in steps(digits_artifact, digits, 2, 6):
        if session.step_count % 2:
            assert rows == []
            continue
        assert [row.layer for row in rows] == [layer.path for layer in session.manifest.layers]
        for row in rows:
            weight = session.tensors()[f"param/{row.layer}.weight"]
            moment, beta = f"adam_m/{row.layer}.weight", session.manifest.optimizer.hyperparameters["betas"][0]
            gradient = (session.tensors()[moment] - beta * before[moment]) / (1 - beta)
            assert row.grad_norm == pytest.approx(np.linalg.norm(gradient), rel=0.3 if weight.size > SAMPLE else 1e-3)
            if row.layer in signs and weight.size <= SAMPLE:
                assert row.flips == pytest.approx(np.mean((weight > 0) != signs[row.layer]))
                assert row.grad_noise >= 0
            else:
                assert math.isnan(row.flips) == (row.layer not in signs)
            signs[row.layer] = weight > 0
        assert next(row.kept for row in rows) == 0.5
        assert 0 <= rows[0].saturated <= 1


def test_watching_changes_no_loss(digits_artifact, digits):
    watched = [session.step_count for *_, session in steps(digits_artifact, digits, 1, 3)]
    assert watched == [1, 2, 3]
    *_, (_, _, one) = steps(digits_artifact, digits, 1, 3)
    *_, (_, _, other) = steps(digits_artifact, digits, 100, 3)
    assert all(np.array_equal(one.tensors()[name], array) for name, array in other.tensors().items())


def test_samples_are_spread_and_distinct():
    assert np.array_equal(_places(100), np.arange(100))
    places = _places(10**6)
    assert len(set(places.tolist())) == SAMPLE
    assert (places[0], places[-1]) == (0, 10**6 - 1)


def test_the_command_logs_what_it_watched(digits_artifact, digits, tmp_path):
    images, labels = digits
    np.savez(tmp_path / "data.npz", x=images[:80].numpy(), y=labels[:80].numpy())
    log, board = tmp_path / "watch.csv", tmp_path / "board"
    arguments = [
        digits_artifact,
        "--data",
        tmp_path / "data.npz",
        "--watch",
        5,
        "--watch-log",
        log,
        "--tensorboard",
        board,
    ]
    result = CliRunner().invoke(main, [*map(str, arguments), "--checkpoint", str(tmp_path / "c")])
    assert result.exit_code == 0, result.output
    assert "watched step 10, gradient norm" in result.output
    with log.open() as file:
        found = list(csv.DictReader(file))
    layers = [layer.path for layer in fqt_deploy.load(digits_artifact).manifest.layers]
    assert [(row["step"], row["layer"]) for row in found] == [(str(s), layer) for s in (5, 10) for layer in layers]
    read = read_watch_log(log)
    assert read[0]["flips"] is None
    assert 0 <= read[-1]["flips"] <= 1
    (file,) = board.iterdir()
    assert b"watch/grad_norm/classifier" in file.read_bytes()


def test_a_log_without_a_watch_is_refused(digits_artifact, tmp_path):
    result = CliRunner().invoke(main, [str(digits_artifact), "--data", "x.npz", "--watch-log", str(tmp_path / "w.csv")])
    assert result.exit_code == 1
    assert "--watch-log needs --watch" in result.output


def test_another_file_is_no_log(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FqtError, match="FQT502"):
        read_watch_log(tmp_path / "x.csv")
