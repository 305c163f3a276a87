import dataclasses
import fcntl

import numpy as np
import pytest

from fqt_deploy.runtime.session import Session
from tools.accuracy import runner
from tools.accuracy.__main__ import main
from tools.accuracy.job import read_records
from tools.accuracy.networks import NETWORKS, initial_state
from tools.accuracy.runner import find_weights, run_job, weights_path


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


def command(work, phase="pretrain", *more):
    common = ["--data", "digits", "--network", "digits", "--rows", "none", "--steps", "24", "--batch", "32"]
    return [phase, *common, "--results", str(work / "results.jsonl"), "--work", str(work), *more]


def test_a_killed_run_goes_on_and_gives_the_same_numbers(work, tmp_path, monkeypatch, capsys):
    assert main(command(work)) == 0
    (whole,) = read_records(work / "results.jsonl")
    assert whole.val[-1][0] == whole.losses[-1][0] == 24
    assert len(whole.losses) == 12
    assert whole.losses[-1][1] < whole.losses[0][1]

    monkeypatch.setattr(runner, "CHECKPOINT_EVERY", 0.0)
    step = Session.step

    def killed_at_11(self, x, y):
        if self.step_count == 11:
            raise KeyboardInterrupt
        return step(self, x, y)

    again = command(work)
    again[again.index("--results") + 1] = str(tmp_path / "again.jsonl")
    monkeypatch.setattr(Session, "step", killed_at_11)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    assert read_records(tmp_path / "again.jsonl") == []
    monkeypatch.setattr(Session, "step", step)
    assert main(again) == 0
    assert "goes on after step 11" in capsys.readouterr().out
    (resumed,) = read_records(tmp_path / "again.jsonl")
    assert resumed == dataclasses.replace(whole, seconds=resumed.seconds)


def test_what_is_done_is_not_done_again_and_transfer_starts_from_the_pretrained_body(work, monkeypatch):
    assert main(command(work)) == 0
    monkeypatch.setattr(Session, "step", None)  # a step would fail
    assert main(command(work)) == 0
    monkeypatch.undo()
    (pretrained,) = read_records(work / "results.jsonl")
    assert main(command(work, "transfer", "--seeds", "1", "--lrs", "1e-30")) == 0  # nothing moves but statistics
    transferred = read_records(work / "results.jsonl")[-1]
    assert transferred.job.pretrained == pretrained.weights
    before, after = (find_weights(work, record.weights) for record in (pretrained, transferred))
    np.testing.assert_array_equal(after["features.3.weight"], before["features.3.weight"])
    head = initial_state(NETWORKS["digits"], 5, 1)["classifier.weight"]
    np.testing.assert_array_equal(after["classifier.weight"], head)
    assert weights_path(work, transferred.job).exists()


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
        (["--data", "/nowhere"], "no data at /nowhere"),
        (["--network", "vgg6"], "vgg6 takes 3 channels"),
        (["--rows", "torch-1bit", "--target", "cuda"], "row torch-1bit trains in PyTorch on the CPU, not on cuda"),
    ],
)
def test_mistakes_are_one_message(work, change, message, capsys):
    assert main(command(work, "transfer", *change)) == 1
    assert message in capsys.readouterr().err


def test_pytorch_takes_the_same_steps_as_recipe_none(work, monkeypatch):
    monkeypatch.setenv("FQT_NUM_THREADS", "1")  # PyTorch's threads spin while they wait for each other
    assert main(command(work, "scratch", "--rows", "none", "torch-1bit")) == 0
    ours, theirs = read_records(work / "results.jsonl")[-2:]
    np.testing.assert_allclose(
        [loss for _, loss in ours.losses[:3]], [loss for _, loss in theirs.losses[:3]], rtol=2e-2
    )
    assert ours.final_val == pytest.approx(theirs.final_val, abs=0.2)
