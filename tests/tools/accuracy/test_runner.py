import dataclasses
import fcntl

import numpy as np
import pytest

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.graph import grids_of
from fqt_deploy.runtime.session import Session
from fqt_deploy.settings import options_of
from tools.accuracy import artifacts, runner
from tools.accuracy.__main__ import main
from tools.accuracy.artifacts import artifact_of
from tools.accuracy.job import append_record, read_records
from tools.accuracy.networks import NETWORKS, Calibration, initial_state, model_source
from tools.accuracy.rows import ROWS
from tools.accuracy.runner import find_weights, run_job, weights_path
from tools.accuracy.torch_session import TorchSession


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def command(work, phase="pretrain", *more):
    common = ["--data", "digits", "--network", "digits", "--rows", "none", "--steps", "24", "--batch", "32"]
    return [phase, *common, "--results", str(work / "results.jsonl"), "--work", str(work), *more]


@pytest.mark.thorough
@pytest.mark.parametrize(("row", "kind"), [("none", Session), ("torch-fp32", TorchSession)])
def test_a_killed_run_goes_on_and_gives_the_same_numbers(row, kind, work, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FQT_NUM_THREADS", "1")
    assert main(command(work, "pretrain", "--rows", row)) == 0
    whole = read_records(work / "results.jsonl")[-1]
    assert whole.val[-1][0] == whole.losses[-1][0] == 24
    assert len(whole.losses) == 12
    assert whole.losses[-1][1] < whole.losses[0][1]

    monkeypatch.setattr(runner, "CHECKPOINT_EVERY", 0.0)
    step = kind.step

    def killed_at_11(self, x, y):
        if self.step_count == 11:
            raise KeyboardInterrupt
        return step(self, x, y)

    again = command(work, "pretrain", "--rows", row)
    again[again.index("--results") + 1] = str(tmp_path / "again.jsonl")
    monkeypatch.setattr(kind, "step", killed_at_11)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    assert read_records(tmp_path / "again.jsonl") == []
    monkeypatch.setattr(kind, "step", step)
    assert main(again) == 0
    assert "goes on after step 11" in capsys.readouterr().out
    (resumed,) = read_records(tmp_path / "again.jsonl")
    assert resumed == dataclasses.replace(whole, seconds=resumed.seconds)


@pytest.mark.thorough
def test_what_is_done_is_not_done_again_and_transfer_starts_from_the_pretrained_body(work, monkeypatch):
    assert main(command(work)) == 0
    monkeypatch.setattr(Session, "step", None)  # a step would fail
    assert main(command(work)) == 0
    monkeypatch.undo()
    pretrained = read_records(work / "results.jsonl")[0]
    assert main(command(work, "transfer", "--seeds", "1", "--lrs", "1e-30")) == 0  # nothing moves but statistics
    transferred = read_records(work / "results.jsonl")[-1]
    assert transferred.job.pretrained == pretrained.weights
    before, after = (find_weights(work, record.weights) for record in (pretrained, transferred))
    np.testing.assert_array_equal(after["features.3.weight"], before["features.3.weight"])
    head = initial_state(NETWORKS["digits"], 5, 1)["classifier.weight"]
    np.testing.assert_array_equal(after["classifier.weight"], head)
    assert weights_path(work, transferred.job).exists()


@pytest.mark.thorough
def test_the_row_whose_weights_to_start_from_can_be_named(work, capsys):
    assert main(command(work, "pretrain", "--rows", "torch-fp32")) == 0
    pretrained = next(each for each in read_records(work / "results.jsonl") if each.job.row == "torch-fp32")
    more = ("--rows", "none-a4", "--pretrained", "torch-fp32", "--lrs", "1e-30")
    assert main(command(work, "transfer", *more)) == 0
    assert read_records(work / "results.jsonl")[-1].job.pretrained == pretrained.weights
    assert main(command(work, "transfer", "--pretrained", "torch-bf16")) == 1
    assert "no pretraining of digits on digits by torch-bf16" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_grid_is_as_wide_as_the_activations_of_the_weights_that_training_starts_from(tmp_path, monkeypatch):
    network, generator = NETWORKS["digits"], np.random.default_rng(0)
    x, y = generator.standard_normal((8, *network.image), dtype=np.float32), generator.integers(0, 5, 8)
    state = initial_state(network, 5, 0)
    wider = {
        name: 4 * value if name in ("features.1.weight", "features.1.bias") else value for name, value in state.items()
    }
    grids = []
    for weights in (state, wider):
        source = model_source(network, 5, 8, calibration=Calibration(weights, x, y))
        lowered = lower_model(source, options_of({"recipe": "none", "activation_bits": 4}))
        grids.append(grids_of(lowered.train.layers)["param/features.3.weight"])
    assert grids[1].spacing == 4 * grids[0].spacing

    compiled = []
    monkeypatch.setattr(artifacts, "_compile", lambda _, settings, folder: (compiled.append(settings), folder.mkdir()))
    found = {
        artifact_of(network, 5, 8, ROWS[row], tmp_path, Calibration(weights, x, y))
        for row in ("none-a4", "none")
        for weights in (state, wider)
    }
    assert len(found) == len(compiled) == 3  # signs have no grid


def test_a_job_in_other_hands_is_left_alone(work, job):
    held = work / "locks" / job(row="once-4").key
    held.parent.mkdir(exist_ok=True)
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_job(job(row="once-4"), None, work) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lrs", "tuned", "--rows", "psq-8"], "no run of digits transfer psq-8 with adam"),
        (["--rows", "torch-fp32"], "holds no pretraining of digits on digits by torch-fp32"),
        (["--data", "/nowhere"], "no data at /nowhere"),
        (["--network", "vgg6"], "vgg6 takes 3 channels"),
        (["--rows", "torch-1bit", "--target", "cuda"], "row torch-1bit trains in PyTorch on the CPU, not on cuda"),
    ],
)
def test_mistakes_are_one_message(change, message, record, tmp_path, capsys):
    pretrained = dataclasses.replace(record(phase="pretrain", pretrained=None), weights="abc")
    append_record(tmp_path / "results.jsonl", pretrained)
    assert main(command(tmp_path, "transfer", *change)) == 1
    assert message in capsys.readouterr().err


def test_pytorch_takes_the_same_steps_as_recipe_none(work, monkeypatch):
    monkeypatch.setenv("FQT_NUM_THREADS", "1")  # PyTorch's threads spin while they wait for each other
    assert main(command(work, "scratch", "--rows", "none", "torch-1bit")) == 0
    ours, theirs = read_records(work / "results.jsonl")[-2:]
    np.testing.assert_allclose(
        [loss for _, loss in ours.losses[:3]], [loss for _, loss in theirs.losses[:3]], rtol=2e-2
    )
    assert ours.final_val == pytest.approx(theirs.final_val, abs=0.2)
