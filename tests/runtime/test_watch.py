"""Statistics of training: what they say of a step is what PyTorch's optimizer would have seen."""

import csv
import math
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

import fqt_deploy
from fqt_deploy.cli_train import main
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import LayerDecision, OptimizerInfo
from fqt_deploy.runtime.watch import SAMPLE, TrainingWatch, _sample
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
            assert row.grad_norm == pytest.approx(
                np.linalg.norm(gradient), rel=0.3 if _sample(weight).size < weight.size else 1e-3
            )
            if row.layer in signs and _sample(weight).size == weight.size:
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
    assert np.array_equal(_sample(np.arange(100)).reshape(-1), np.arange(100))
    for size, expected in ((1025, 1024), (20_000, 1216), (10**6, SAMPLE)):
        places = _sample(np.arange(size).reshape(5, -1)).reshape(-1)
        assert len(set(places.tolist())) == expected
        assert places[0] == 0
        assert places[-1] >= 0.98 * size
    weights = np.zeros(10**5, np.float32)
    seen = _sample(weights)
    weights[:] = 3
    assert (seen == 3).all()  # a view of what the next step writes


@pytest.mark.parametrize(
    ("name", "hyperparameters", "kind", "factor"),
    [
        ("sgd", {"momentum": 0.5}, "sgd_momentum", 1.0),
        ("adamw", {"betas": [0.5, 0.9]}, "adam_m", 0.5),
        ("radam", {"betas": [0.5, 0.9]}, "radam_m", 0.5),
        ("nadam", {"betas": [0.5, 0.9]}, "nadam_m", 0.5),
    ],
)
def test_each_layer_has_its_own_numbers(name, hyperparameters, kind, factor):
    """Against the sums of a loop over layers, on made-up state of two layers, one of them without a moment."""
    generator = np.random.default_rng(0)
    layers = [LayerDecision("a", "linear", "1-bit", ""), LayerDecision("b", "linear", "fp32", "")]
    optimizer = OptimizerInfo(name, hyperparameters, [{"pattern": ["*"], "lr": 0.1}])
    state = {
        "param/a.weight": generator.standard_normal((20, 30)).astype("float32"),
        "param/b.weight": generator.standard_normal(40).astype("float32"),
        f"{kind}/a.weight": np.zeros((20, 30), "float32"),
    }
    session = SimpleNamespace(
        step_count=0, manifest=SimpleNamespace(layers=layers, optimizer=optimizer), tensors=lambda: state
    )
    watch = TrainingWatch(session, 1, {"a": 0.25})
    gradients = []
    for step in (1, 2, 3):
        watch.begin()
        gradient = generator.standard_normal((20, 30)).astype("float32") + 1
        state[f"{kind}/a.weight"] *= 0.5
        state[f"{kind}/a.weight"] += factor * gradient
        before = {name: array > 0 for name, array in state.items()}
        state["param/a.weight"][:step] *= -1
        session.step_count = step
        a, b = watch.end()
        gradients.append(gradient)
        assert (a.step, a.layer, a.kept, b.layer) == (step, "a", 0.25, "b")
        assert a.grad_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
        assert a.saturated == np.mean(np.abs(state["param/a.weight"]) >= 1)
        assert b.saturated == np.mean(np.abs(state["param/b.weight"]) >= 1)
        assert math.isnan(b.grad_norm)
        assert math.isnan(b.grad_noise)
        assert math.isnan(b.kept)
        if step > 1:
            assert a.flips == pytest.approx(np.mean((state["param/a.weight"] > 0) != before["param/a.weight"]))
            assert b.flips == 0
    powers = 0.9 ** np.arange(3)[::-1, None, None]
    mean, square = (np.sum(powers * g, 0) / powers.sum() for g in (np.array(gradients), np.array(gradients) ** 2))
    assert a.grad_noise == pytest.approx(math.sqrt((square.sum() - (mean**2).sum()) / (mean**2).sum()), rel=1e-3)


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
