"""Scripts are trained on the same batches in eager PyTorch and compiled, and what is reported are means of losses."""

import dataclasses

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.settings import options_of
from tools.accuracy.data import Dataset
from tools.compare_learning import ROWS, summary, thinned_script, train
from tools.learning_scripts import SCRIPTS

RNG = np.random.default_rng(0)
DATA = Dataset(
    RNG.integers(0, 256, (80, 3, 32, 32), np.uint8), RNG.integers(0, 10, 80),
    RNG.integers(0, 256, (8, 3, 32, 32), np.uint8), RNG.integers(0, 10, 8),
)  # fmt: skip


def test_the_summary_has_the_first_loss_and_the_means_of_the_last_steps_of_both_halves():
    found = summary([float(number) for number in range(100)])
    assert found == {"first": 0.0, "half": 39.5, "last": 79.5}
    assert summary([3.0]) == {"first": 3.0, "half": 3.0, "last": 3.0}


def test_equal_seeds_are_equal_runs_and_others_are_not():
    runs = [train(SCRIPTS["resnet"], DATA, None, seed, 1.0, 2) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_a_step(name):
    script = SCRIPTS[name]
    batch = next(script.batches(DATA, np.random.default_rng(0)))
    torch.manual_seed(0)
    report = fqt_deploy.check(script.build(), script.loss, example_inputs=batch)
    assert report.ok
    assert report.selection_note == ""


def test_a_compiled_step_begins_with_the_loss_of_the_network_where_nothing_is_in_1_bit():
    settings = {"recipe": "none", "exclude": ("*",)}
    losses = [train(SCRIPTS["simclr"], DATA, each, 0, 1.0, 1) for each in (None, settings)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_fine_tuning_begins_where_pretraining_ends():
    script = dataclasses.replace(
        SCRIPTS["gpt-code"], pretraining=dataclasses.replace(SCRIPTS["gpt-code"].pretraining, steps=40)
    )
    fresh = dataclasses.replace(script, pretraining=None)
    (learned, *_), (random, *_) = (train(each, DATA, None, 0, 1.0, 1) for each in (script, fresh))
    assert learned < random - 0.5
    assert train(script, DATA, None, 0, 1.0, 1) == [learned]


def test_every_row_names_settings_of_the_compiler():
    assert len([options_of(row) for row in ROWS.values() if row is not None]) == len(ROWS) - 1


def test_every_so_many_samples_of_a_batch():
    whole, thinned = (
        next(thinned_script(SCRIPTS["gpt"], every).batches(DATA, np.random.default_rng(0))) for every in (1, 4)
    )
    assert [torch.equal(few, all_of_them[::4]) for few, all_of_them in zip(thinned, whole, strict=True)] == [True, True]
