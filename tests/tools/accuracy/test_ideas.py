"""Ideas: the passes that stand in for the compiler's, and schedules."""

import pytest
import torch

from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.settings import options_of
from tools.accuracy.ideas import CHANGES, changed_passes
from tools.accuracy.ideas_table import ideas_table
from tools.accuracy.job import Job, Record
from tools.accuracy.networks import NETWORKS, model_source
from tools.accuracy.rows import ROWS
from tools.accuracy.scheduled_session import ScheduledSession

fqt = torch.ops.fqt


def lowered(row):
    settings = {name: value for name, value in ROWS[row].items() if name != "idea"}
    options = options_of(settings)
    passes = changed_passes(options, row) if row in CHANGES else None
    return lower_model(model_source(NETWORKS["digits"], 5, 8), options, passes=passes).train


def kept(graph):
    return [node.args[2] for node in graph.calls(fqt.select_sampled.default)]


@pytest.fixture(scope="module")
def once():
    return lowered("once-4")


def test_every_idea_stands_in_for_passes_of_its_recipe():
    for row, changes in CHANGES.items():
        settings = {name: value for name, value in ROWS[row].items() if name != "idea"}
        found = {type(item) for item in changed_passes(options_of(settings), row)}
        assert found >= {change.kind for change in changes}


@pytest.mark.thorough
def test_widths_of_an_idea_reach_samples_and_grids(once):
    assert {node.args[2] for node in once.calls(fqt.quantization_grid.default)} == {4}
    assert kept(once) == [2]
    wider = lowered("once-4-d6w2")
    widths = {node.args[2] for node in wider.calls(fqt.quantization_grid.default)}
    assert widths == {6, 2}
    (packed,) = {node.args[-1] for node in wider.calls(fqt.quantize_pack_channels.default)}
    assert packed == 2
    assert kept(lowered("once-3")) == [3]
    assert kept(lowered("nested-4-flat")) != kept(lowered("nested-4-steep"))


@pytest.mark.thorough
def test_a_spelled_out_projection_replaces_every_batch_normalization(once):
    assert once.calls(fqt.channel_gradient_sums.default)
    assert not lowered("once-4-weighted-projection").calls(fqt.channel_gradient_sums.default)


class Recorder:
    """A session that remembers who stepped; checkpoints carry the count."""

    def __init__(self, name, steps):
        self.name, self.steps, self.step_count, self.lr, self.seed = name, steps, 0, 0.1, 0

    def step(self, x, y):
        self.steps.append((self.name, self.step_count, self.lr))
        self.step_count += 1
        return 0.0

    def save_checkpoint(self, path):
        path.write_text(f"{self.step_count} {self.lr}")

    def load_checkpoint(self, path):
        count, rate = path.read_text().split()
        self.step_count, self.lr = int(count), float(rate)
        return {}


def test_a_schedule_gives_each_session_its_share_of_the_steps():
    steps = []
    session = ScheduledSession([Recorder("a", steps), Recorder("b", steps), Recorder("c", steps)], 7)
    session.seed = 3
    for i in range(7):
        session.lr = i
        session.step(None, None)
    assert [name for name, _, _ in steps] == ["a", "a", "b", "b", "c", "c", "c"]
    assert [count for _, count, _ in steps] == list(range(7))
    assert [rate for _, _, rate in steps] == list(range(7))
    assert session.seed == 3


def test_ideas_are_compared_on_the_seeds_that_both_ran():
    def record(row, seed, val):
        job = Job("data", "vgg6", "transfer", row, "adam", 1e-3, 10, 8, None, seed)
        return Record(job, "revision", val=[(10, val)], test=val)

    records = [record("once-4", 100, 0.70), record("once-4", 101, 0.74)]
    records += [record("once-3", 101, 0.75), record("a-row-of-the-past", 100, 0.60)]
    table = ideas_table(records)[2:]
    assert table == [
        "| once-3 | adam | 101 | 75.0 | 75.0 | +1.0 |",
        "| once-4 | adam | 100, 101 | 72.0 ± 2.0 | 72.0 ± 2.0 |  |",
        "| a-row-of-the-past | adam | 100 | 60.0 | 60.0 | -10.0 |",
    ]
