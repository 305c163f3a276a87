"""A prediction is a function of its own sample: what mixes samples or draws numbers in evaluation mode is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.diagnostics import FqtError

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Predicting(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.code = nn.Linear(192, 5), forward

    def forward(self, x):
        return self.code(self, x.flatten(1))


REFUSED = {
    "dropout": (lambda m, x: F.dropout(m.a(x)), "draws random numbers"),
    "noise": (lambda m, x: m.a(x) + torch.randn(5), "draws random numbers"),
    "mean over the batch": (lambda m, x: m.a(x) - x.mean(), "the other samples"),
    "largest of the batch": (lambda m, x: m.a(x) - m.a(x).amax(0), "the other samples"),
    "attention between samples": (lambda m, x: (m.a(x) @ m.a(x).T).softmax(1) @ m.a(x), "the other samples"),
    "reversed": (lambda m, x: m.a(x).flip(0), "the other samples"),
}


@pytest.mark.quick(per="case")
@pytest.mark.parametrize("batch", [6, 1])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_function_of_the_sample_is_refused_with_its_line(case, batch):
    forward, said = REFUSED[case]
    with pytest.raises(FqtError, match=said) as caught:
        capture_prediction_graph(Predicting(forward), X[:batch])
    assert caught.value.code == "FQT107"
    assert caught.value.location.path.name == "test_check_prediction.py"


def test_rows_that_belong_to_no_sample_are_refused():
    with pytest.raises(FqtError, match="returns 5 rows for 6 samples"):
        capture_prediction_graph(Predicting(lambda m, x: m.a(x).sum(0)), X)


@pytest.mark.parametrize(
    ("steps", "axes", "axis"), [(5, (1, 0, 2), 1), (6, (1, 0, 2), 1), (12, (1, 0, 2), 1), (4, (1, 2, 0), 2)]
)
def test_samples_that_are_not_on_the_first_axis_are_pointed_out(steps, axes, axis):
    def forward(model, x):
        return (model.a(x).unsqueeze(1) * torch.ones(steps, 1)).permute(axes)

    with pytest.raises(FqtError, match=rf"FQT107.* for 6 samples .*: the samples are on axis {axis}, not") as caught:
        capture_prediction_graph(Predicting(forward), X)
    assert f"transpose(0, {axis})" in caught.value.hint


def test_samples_that_meet_along_an_axis_of_their_number_are_no_transposed_ones():
    with pytest.raises(FqtError, match="depend on the other samples"):
        capture_prediction_graph(Predicting(lambda m, x: m.a(x) @ m.a(x).T), X)
    with pytest.raises(FqtError, match="returns 5 rows for 6 samples"):
        capture_prediction_graph(Predicting(lambda m, x: m.a(x).sum(0).unsqueeze(1).expand(5, 6)), X)


@pytest.mark.quick
@pytest.mark.parametrize("batch", [6, 1])
def test_batch_statistics_in_evaluation_are_refused_and_those_of_a_sample_are_not(batch):
    def net(norm):
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    with pytest.raises(FqtError, match="FQT107") as caught:
        capture_prediction_graph(net(nn.BatchNorm2d(4, track_running_stats=False)), X[:batch])
    assert "module 1" in caught.value.render()
    for norm in (nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6])):
        assert capture_prediction_graph(net(norm), X[:batch]).outputs == ["logits"]


def test_a_model_of_one_sample_has_no_other_samples():
    graph = capture_prediction_graph(Predicting(lambda m, x: m.a(x.view(1, 192)) - x.mean()), X[:1])
    assert graph.outputs == ["logits"]


def test_an_operator_that_refuses_numbers_is_left_to_the_check_of_operators():
    graph = capture_prediction_graph(
        Predicting(lambda m, x: m.a(x) * torch.linalg.svdvals(x.view(-1, 8, 24))[:, :5]), X
    )
    assert any("svd" in str(node.target) for node in graph.graph.nodes)


def test_logits_that_are_nan_anyway_tell_nothing_of_other_samples():
    model, zeros = Predicting(lambda m, x: m.a(torch.lgamma(x.relu()) * 0)), torch.zeros_like(X)
    assert model(zeros).isnan().all()
    assert [*capture_prediction_graph(model, zeros).results()] == ["logits"]


class Columns(nn.Module):
    """A table whose columns have ranges of their own."""

    def __init__(self, forward):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 4) for size in (2, 30, 4))
        self.head, self.code = nn.Linear(12, 3), forward

    def forward(self, x):
        joined = torch.cat([table(x[:, i]) for i, table in enumerate(self.tables)], 1)
        return self.code(self.head(joined.asinh()))


@pytest.mark.parametrize("batch", [6, 1])
def test_each_column_of_a_table_has_its_own_range(batch):
    columns = torch.stack([torch.arange(6) % 2, torch.arange(6) + 24, torch.arange(6) % 4], 1)[:batch]
    # differences that cancel: the definitions of the ops alone do not say that no sample reaches another
    graph = capture_prediction_graph(Columns(lambda y: y + (y - y).mean(0)), columns)
    assert graph.outputs == ["logits"]


def test_samples_of_a_table_that_are_mixed_are_refused():
    columns = torch.stack([torch.arange(6) % 2, torch.arange(6) + 24, torch.arange(6) % 4], 1)
    with pytest.raises(FqtError, match="the other samples") as caught:
        capture_prediction_graph(Columns(lambda y: y - y.mean(0)), columns)
    assert caught.value.location.path.name == "test_check_prediction.py"
