"""Labels that a loss takes: what it can index by, not the shape of the logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.label_values import HIGHEST, LOWEST, Condition, Index
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.describe import describe_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import LabelUse
from fqt_deploy.core.manifest import IndexRange
from fqt_deploy.core.options import CompileOptions

WEIGHT = torch.linspace(0.5, 2, 5)
GENERATOR = torch.Generator().manual_seed(0)


def labels(*shape, low=0, high=5):
    return torch.randint(low, high, shape, generator=GENERATOR)


def captured(loss_fn, y, x_shape=None):
    """The graph of a linear layer with 5 outputs on the last axis."""
    x = torch.randn(*(x_shape or y.shape), 4, generator=GENERATOR)
    torch.manual_seed(0)
    return capture_training_graph(nn.Linear(4, 5), loss_fn, (x, y))


def _written(o, y):
    shifted = torch.full_like(y, -100)
    shifted[:, :-1] = y[:, 1:]
    return F.cross_entropy(o.reshape(-1, 5), shifted.reshape(-1))


def _replaced(o, y):
    shifted = F.pad(y, (-1, 1), value=9)
    return F.cross_entropy(o.reshape(-1, 5), shifted.masked_fill(shifted == 9, -100).reshape(-1))


TAKEN = {
    "cross-entropy": (F.cross_entropy, labels(8), LabelUse(0, 5, -100, 1)),
    "weights, smoothing, void": (
        lambda o, y: F.cross_entropy(o, y, weight=WEIGHT, label_smoothing=0.1, ignore_index=255),
        labels(8), LabelUse(0, 5, 255, 1),
    ),
    "a class is left out": (lambda o, y: F.cross_entropy(o, y, ignore_index=2), labels(8), LabelUse(0, 5, None, 1)),
    "numbered from 1": (lambda o, y: F.cross_entropy(o, y - 1), labels(8, low=1, high=6), LabelUse(1, 6, -99, 1)),
    "clamped": (lambda o, y: F.cross_entropy(o, y.clamp(0, 4)), labels(8), None),
    "clamped from below": (lambda o, y: F.cross_entropy(o, y.clamp(min=0)), labels(8), LabelUse(LOWEST, 5, None, 1)),
    "clamped to what is left out": (
        lambda o, y: F.cross_entropy(o, y.clamp(min=-1), ignore_index=-1), labels(8), LabelUse(LOWEST, 5, None, 1),
    ),
    "remainder": (lambda o, y: F.cross_entropy(o, y % 5), labels(8, high=20), None),
    "replaced": (lambda o, y: F.cross_entropy(o, torch.where(y == 9, -100, y)), labels(7), LabelUse(0, 5, -100, 1)),
    "replaced, and seen": (
        lambda o, y: F.cross_entropy(o, torch.where((y == 9) | (y == 8), -100, y)),
        torch.tensor([0, 4, 9]), LabelUse(0, 5, 9, 1),
    ),
    "replaced below": (
        lambda o, y: F.cross_entropy(o, torch.where(y < 0, 0, y)), labels(8), LabelUse(LOWEST, 5, None, 1),
    ),
    "regression": (lambda o, y: F.mse_loss(o[:, 0], y.float()), labels(8), None),
    "one logit": (lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], (y > 2).float()), labels(8), None),
    "counts": (lambda o, y: F.poisson_nll_loss(o[:, 0], y.float()), labels(8, high=90), None),
    "real targets": (lambda o, y: F.mse_loss(o[:, 0], y), torch.randn(8), None),
    "tokens": (lambda o, y: F.cross_entropy(o.transpose(1, 2), y), labels(8, 6), LabelUse(0, 5, -100, 2)),
    "tokens, flattened": (
        lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten(), ignore_index=-1),
        labels(8, 6), LabelUse(0, 5, -1, 2),
    ),
    "as many tokens as classes": (
        lambda o, y: F.cross_entropy(o.transpose(1, 2), y), labels(8, 5), LabelUse(0, 5, -100, 2),
    ),
    "as many classes as tokens": (F.cross_entropy, labels(8, 5), LabelUse(0, 5, -100, 1)),
    "pixels": (
        lambda o, y: F.cross_entropy(o.permute(0, 3, 1, 2), y, ignore_index=255),
        labels(4, 3, 3), LabelUse(0, 5, 255, 3),
    ),
    "the next token": (
        lambda o, y: F.cross_entropy(o[:, :-1].reshape(-1, 5), y[:, 1:].reshape(-1)),
        labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "the next token, filled up with void": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), F.pad(y, (0, 1), value=-100)[:, 1:].reshape(-1)),
        labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "the next token, filled up with a class": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), F.pad(y, (-1, 1), value=3).reshape(-1)),
        labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "numbered from 1, filled up": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), F.pad(y - 1, (-1, 1), value=-1).reshape(-1), ignore_index=-1),
        labels(8, 6, low=1, high=6), LabelUse(1, 6, 0, 2),
    ),
    "joined with void": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), torch.cat([y[:, 1:], y.new_full((8, 1), -100)], 1).reshape(-1)),
        labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "written into void": (_written, labels(8, 6), LabelUse(0, 5, -100, 2)),
    "filled up, then replaced": (_replaced, labels(8, 6), LabelUse(0, 5, -100, 2)),
    "one_hot": (
        lambda o, y: -(F.one_hot(y, 5) * o.log_softmax(1)).sum(1).mean(), labels(8), LabelUse(0, 5, None, 1),
    ),
    "one_hot, clamped from below": (
        lambda o, y: (F.one_hot(y.clamp(min=0), 5) * o * (y >= 0)[:, None]).sum(),
        labels(8), LabelUse(LOWEST, 5, None, 1),
    ),
    "one_hot, clamped from above": (
        lambda o, y: (F.one_hot((y + 1).clamp(max=4), 5) * o).sum(), labels(8), LabelUse(-1, HIGHEST, None),
    ),
    "one_hot, void replaced": (
        lambda o, y: (F.one_hot(torch.where(y != 255, y, 0), 5) * o * (y != 255)[:, None]).sum(),
        torch.tensor([0, 4, 255]), LabelUse(0, 5, 255, 1),
    ),
    "one_hot, void below replaced": (
        lambda o, y: (F.one_hot(y.masked_fill(y == -100, 0), 5) * o).sum(), labels(8), LabelUse(0, 5, -100, 1),
    ),
    "masked by what the model computes": (
        lambda o, y: F.cross_entropy(o, torch.where(o[:, 0] > 0, y, -100)), labels(8), LabelUse(0, 5, -100, 1),
    ),
    "masked to a class by what the model computes": (
        lambda o, y: F.cross_entropy(o, y.masked_fill(o[:, 0] > 0, 3)), labels(8), LabelUse(0, 5, -100, 1),
    ),
    "written into a class where the model says": (
        lambda o, y: F.cross_entropy(
            o.transpose(1, 2), torch.full((8, 6), 4).scatter(1, o.argmax(-1)[:, :2], y[:, :2])
        ), labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "written by number": (
        lambda o, y: F.cross_entropy(
            o.transpose(1, 2), torch.full((8, 6), -100).index_put((torch.arange(8)[:, None], o.argmax(-1)), y)
        ), labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "some of them overwritten": (
        lambda o, y: F.cross_entropy(o.transpose(1, 2), y.scatter(1, o.argmax(-1)[:, :2], -100)),
        labels(8, 6), LabelUse(0, 5, -100, 2),
    ),
    "one_hot squared": (lambda o, y: F.mse_loss(o, F.one_hot(y, 5).float()), labels(8), LabelUse(0, 5, None, 1)),
    "gather": (
        lambda o, y: -o.log_softmax(1).gather(1, y[:, None]).mean(), labels(8), LabelUse(0, 5, None, 1),
    ),
    "index": (lambda o, y: -o[torch.arange(8), y].mean(), labels(8), LabelUse(0, 5, None, 1)),
    "margin": (F.multi_margin_loss, labels(8), LabelUse(0, 5, None, 1)),
    "fewer classes in one of two": (
        lambda o, y: F.cross_entropy(o, y) + F.cross_entropy(o[:, :3], y), labels(8, high=3), LabelUse(0, 3, -100, 1),
    ),
    "weighted mean": (
        lambda o, y: (F.cross_entropy(o, y, reduction="none") * (y != 3)).sum() / (y != 3).sum().clamp(min=1),
        labels(8), LabelUse(0, 5, -100, 1),
    ),
}  # fmt: skip


@pytest.mark.quick(per=lambda case: repr(TAKEN[case["case"]][2]))
@pytest.mark.parametrize("case", TAKEN)
def test_labels_are_what_the_loss_indexes_by(case):
    loss_fn, y, expected = TAKEN[case]
    assert captured(loss_fn, y).labels == expected


REFUSED = {
    "halved": (lambda o, y: F.cross_entropy(o, y // 2), labels(8)),
    "doubled": (lambda o, y: F.cross_entropy(o, y * 2), labels(8, high=2)),
    "chosen by another label": (
        lambda o, y: F.cross_entropy(
            o[:, 1:].reshape(-1, 5), torch.where(y[:, 1:] == 7, -100, y[:, :-1]).reshape(-1)
        ), labels(8, 6),
    ),
    "filled up with no class": (
        lambda o, y: -o[torch.arange(8), F.pad(y, (-1, 1), value=-1)].mean(), labels(8),
    ),
    "filled up with others than labels": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), torch.cat([y[:, 1:], o[:, :1].argmax(-1)], 1).reshape(-1)),
        labels(8, 6),
    ),
    "two labels joined": (
        lambda o, y: F.cross_entropy(o.reshape(-1, 5), torch.cat([y[:, 1:], y[:, :1] + 1], 1).reshape(-1)),
        labels(8, 6, high=4),
    ),
    "masked to no class": (
        lambda o, y: -o[torch.arange(8), y.masked_fill(o[:, 0] > 0, -1)].mean(), labels(8),
    ),
    "masked by labels in a way that is not followed": (
        lambda o, y: F.cross_entropy(o, torch.where(y.float().sin() > 0, y, 0)), labels(8),
    ),
    "written together": (
        lambda o, y: F.cross_entropy(
            o.transpose(1, 2), torch.zeros_like(y).index_put((torch.arange(8)[:, None], o.argmax(-1)), y, True)
        ), labels(8, 6, high=1),
    ),
    "several void ones": (
        lambda o, y: F.cross_entropy(o, torch.where((y == 9) | (y == 8), -100, y)), torch.tensor([0, 8, 9]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_labels_that_cannot_be_bounded_are_refused(case):
    with pytest.raises(FqtError) as caught:
        captured(*REFUSED[case])
    assert caught.value.code == "FQT203"


def asserting(condition):
    def loss_fn(o, y):
        torch._assert_async(condition(o, y), "must hold")
        return F.cross_entropy(o, y)

    return loss_fn


def test_assertions_about_labels_bound_them_and_others_are_refused():
    bounded = asserting(lambda o, y: (y >= 1).all())
    graph = captured(bounded, labels(8, low=1))
    assert graph.labels == LabelUse(1, 5, None, 1)  # -100 is asserted away
    assert not [n for n in graph.graph.nodes if "assert" in str(n.target)]
    with pytest.raises(FqtError, match="FQT104: the model asserts something") as caught:
        captured(asserting(lambda o, y: (o > -1e9).all()), labels(8))
    assert caught.value.location.path.name == "test_label_range.py"


@pytest.mark.parametrize(
    ("index", "extent", "low", "high", "skipped"),
    [
        (Index(), 5, 0, 5, []),
        (Index(shift=-1), 5, 1, 6, []),
        (Index(replaced={-100: 0}), 5, 0, 5, [-100]),
        (Index().at_least(0), 5, LOWEST, 5, []),
        (Index().at_least(-1), 5, 0, 5, []),
        (Index().at_least(0).at_most(4), 5, LOWEST, HIGHEST, []),
        (Index(shift=2).at_most(9), 5, -2, 3, []),
    ],
)
def test_legal_labels_of_an_index(index, extent, low, high, skipped):
    legal = index.legal(extent)
    assert (legal.low, legal.high, sorted(legal.skipped)) == (low, high, skipped)
    for label in range(-110, 20):  # the definition itself
        value = index.replaced.get(label, label + index.shift)
        if index.below and label < index.below[0]:
            value = index.below[1]
        if index.above and label >= index.above[0]:
            value = index.above[1]
        assert legal.takes(label) == (0 <= value < extent), label


def test_a_condition_on_a_bounded_index_knows_where_the_bound_is_it():
    assert Index().at_least(-1).differs_from(-1) == Condition(low=-1, without=frozenset({-1}))
    assert Index().at_least(0).differs_from(-100) == Condition()
    assert Index(replaced={9: -100}).differs_from(-100) == Condition(without=frozenset({9, -100}))


def test_the_manifest_says_which_labels_there_are(pixel_source):
    source, options = pixel_source, CompileOptions(recipe="none", exclude=("*",))
    lowered = lower_model(source, options)
    manifest = describe_model(source, options, lowered.train, lowered.predict, target={"name": "cpu"})
    assert (manifest.classes, manifest.labels.values, manifest.class_axis) == (4, IndexRange(0, 4, 255), 1)
    assert type(manifest).from_json(manifest.to_json()) == manifest


@pytest.fixture
def pixel_source():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    y = labels(4, 8, 8, high=4)
    y[:, :2] = 255
    return ModelSource(model, lambda o, y: F.cross_entropy(o, y, ignore_index=255), (torch.randn(4, 3, 8, 8), y))


def one_hot_of(integers):
    """A model that takes what ``integers`` makes of its input as one of six."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x):
            return self.linear(F.one_hot(integers(x), 6).float())

    return Model()


BOUNDED = {
    "itself": lambda x: x,
    "clamped": lambda x: x.clamp(0, 5),
    "the larger": lambda x: torch.maximum(x % 3, (x % 2) * 4) + 1,
    "a remainder": lambda x: (x * 2) % 6,
    "a quotient": lambda x: (x % 12) // 2,
    "a count": lambda x: (x[:, None] > torch.arange(5)).sum(1),
    "a position": lambda x: (x[:, None] * torch.arange(6)).argmax(1),
    "the order": lambda x: torch.topk(x[:, None] * torch.arange(6).float(), 3)[1][:, 0],
    "places": lambda x: torch.arange(1, 6)[x.argsort() % 5] + x.clamp(0, 0),
    "places joined": lambda x: torch.cat([torch.arange(0, 5, 2), torch.arange(5)]) + x.clamp(0, 1),
    "a choice": lambda x: torch.where(x > 2, x.clamp(1, 4) + 1, 0),
    "a product": lambda x: (x % 3) * (x % 2),
}
UNBOUNDED = {
    "doubled": lambda x: x * 2,
    "clamped too wide": lambda x: x.clamp(0, 6),
    "clamped on one side": lambda x: (x * 3).clamp(max=5),
    "places beyond": lambda x: torch.arange(8)[x.argsort() % 6] + x.clamp(0, 1),
    "a negative remainder": lambda x: x % 6 - 1,
}


@pytest.mark.parametrize("case", BOUNDED)
def test_one_hot_of_integers_that_cannot_be_out_of_range_compiles(case):
    batch = labels(8, high=6), labels(8)
    graph = capture_training_graph(one_hot_of(BOUNDED[case]), F.cross_entropy, batch)
    assert not [n for n in graph.graph.nodes if "assert" in str(n.target)]
    expected = IndexRange(0, 6, None) if case == "itself" else None
    assert graph.signature[0].values == expected


@pytest.mark.parametrize("case", UNBOUNDED)
def test_one_hot_of_integers_that_may_be_out_of_range_is_refused(case):
    batch = torch.ones(8, dtype=torch.int64), labels(8)
    with pytest.raises(FqtError, match=r"FQT104: the model asserts .*one_hot") as caught:
        capture_training_graph(one_hot_of(UNBOUNDED[case]), F.cross_entropy, batch)
    assert "clamp" in caught.value.hint
    assert caught.value.location.path.name == "test_label_range.py"


def test_one_hot_without_a_number_of_classes_is_refused():
    class Model(nn.Linear):
        def forward(self, x):
            return super().forward(F.one_hot(x).float())

    batch = torch.arange(6), labels(6)
    with pytest.raises(FqtError, match=r"FQT104: F\.one_hot without num_classes") as caught:
        capture_training_graph(Model(6, 5), F.cross_entropy, batch)
    assert caught.value.location.path.name == "test_label_range.py"


class Table(nn.Module):
    """Columns of integers, looked up in tables of their own; how they are picked is a parameter of the test."""

    def __init__(self, pick):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, 3) for size in (2, 30, 7))
        self.head, self.pick = nn.Linear(9, 5), pick

    def forward(self, x):
        return self.head(torch.cat([table(c) for table, c in zip(self.tables, self.pick(x), strict=True)], -1))


def columns_of(*extents):
    return torch.stack([labels(8, high=extent) for extent in extents], 1)


PICKED = {
    "indexed": lambda x: [x[:, i] for i in range(3)],
    "converted": lambda x: [x.long()[..., i] for i in range(3)],
    "unbound": lambda x: x.unbind(1),
    "split": lambda x: [part.squeeze(1) for part in x.split(1, 1)],
    "chunked": lambda x: [part.flatten() for part in x.chunk(3, -1)],
    "of a part": lambda x: [x[:, 0], x[:, 1:][:, 0], x[:, 1:].select(1, 1)],
    "transposed": lambda x: list(x.clone().T.contiguous()),
}
OWN = (IndexRange(0, 2), IndexRange(0, 30), IndexRange(0, 7))


@pytest.mark.parametrize("case", PICKED)
def test_columns_that_are_looked_up_in_tables_have_ranges_of_their_own(case):
    x = columns_of(2, 30, 7)
    graph = capture_training_graph(Table(PICKED[case]), F.cross_entropy, (x, labels(8)))
    spec = graph.signature[0]
    # Columns along another axis than the last are not told apart: all of them have the range that is common.
    expected = (IndexRange(0, 2), ()) if case == "transposed" else (IndexRange(0, 30), OWN)
    assert (spec.values, spec.columns) == expected


def test_a_column_that_is_moved_has_the_range_that_was_moved():
    graph = capture_training_graph(
        Table(lambda x: [x[:, 0] - 1, x[:, 1].clamp(max=29), x[:, 2]]),
        F.cross_entropy,
        (columns_of(2, 30, 7) + torch.tensor([1, 0, 0]), labels(8)),
    )
    assert graph.signature[0].columns == (IndexRange(1, 3), IndexRange(0, HIGHEST), IndexRange(0, 7))
    graph = capture_training_graph(
        Table(lambda x: [x[:, 0] - 1, x[:, 1] + 2, x[:, 2]]),
        F.cross_entropy,
        (columns_of(2, 20, 7) + torch.tensor([1, 0, 0]), labels(8)),
    )
    assert graph.signature[0].columns == (IndexRange(1, 3), IndexRange(-2, 28), IndexRange(0, 7))


def test_a_column_that_is_a_number_may_be_any():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(3, 4), nn.Linear(5, 5)

        def forward(self, x):
            return self.head(torch.cat([self.table(x[:, 0]), x[:, 1:].float().log1p()], 1))

    graph = capture_training_graph(Mixed(), F.cross_entropy, (columns_of(3, 100), labels(8)))
    assert graph.signature[0].columns == (IndexRange(0, 3), IndexRange(LOWEST, HIGHEST))


def test_labels_of_several_tasks_have_ranges_of_their_own():
    def loss(o, y):
        return F.cross_entropy(o[:, :2], y[:, 0]) + F.cross_entropy(o[:, 2:], y[:, 1])

    x, y = torch.randn(8, 4, generator=GENERATOR), columns_of(2, 3)
    graph = capture_training_graph(nn.Linear(4, 5), loss, (x, y))
    assert graph.signature[1].values == IndexRange(0, 3, -100)
    assert graph.signature[1].columns == (IndexRange(0, 2, -100), IndexRange(0, 3, -100))
    assert graph.labels is None  # the classes of two tasks are no classes of the logits
