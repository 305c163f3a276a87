"""The loss over all paths that spell some labels is PyTorch's, with the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from tests.capture.following import assert_follows_pytorch


def _both(log_probs, targets, *args, weights=None, **kwargs):
    """Loss and gradient of PyTorch, and those of the form that is traced."""

    def run():
        x = log_probs.clone().requires_grad_()
        loss = F.ctc_loss(x, targets, *args, **kwargs)
        (gradient,) = torch.autograd.grad((loss * (1.0 if weights is None else weights)).sum(), x)
        return loss, gradient

    expected = run()
    with ReplacedFunctions():
        return run(), expected


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("blank", [0, 4, 6])
def test_samples_of_different_lengths(generator, reduction, blank):
    x = torch.randn(12, 4, 7, generator=generator).log_softmax(2)
    others = torch.tensor([c for c in range(7) if c != blank])
    y = others[torch.randint(0, 6, (4, 5), generator=generator)]
    y[0] = others[2]  # the same label again and again needs blanks between
    frames, labels = torch.tensor([12, 12, 9, 5]), torch.tensor([5, 3, 1, 4])
    weights = torch.rand(4, generator=generator) if reduction == "none" else None
    assert_same(*_both(x, y, frames, labels, blank=blank, reduction=reduction, weights=weights))


def test_what_is_not_a_softmax_has_the_gradient_that_pytorch_gives_it(generator):
    x = torch.randn(8, 2, 5, generator=generator) - 2
    assert_same(*_both(x, torch.tensor([[1, 2], [3, 3]]), torch.tensor([8, 6]), torch.tensor([2, 2])))


def test_what_is_behind_the_labels_may_be_anything(generator):
    x = torch.randn(8, 2, 5, generator=generator).log_softmax(2)
    y = torch.tensor([[1, 2, -100], [3, -1, 77]])
    assert_same(*_both(x, y, torch.tensor([8, 8]), torch.tensor([2, 1])))


def test_no_labels_and_no_frames(generator):
    x = torch.randn(6, 3, 5, generator=generator).log_softmax(2)
    y = torch.tensor([[1, 2], [3, 3], [1, 1]])
    frames, labels = torch.tensor([6, 0, 4]), torch.tensor([0, 0, 2])
    assert_same(*_both(x, y, frames, labels, reduction="none"))


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("frames", [1, 6])
def test_samples_without_any_label(generator, frames, zero_infinity):
    x = torch.randn(frames, 3, 5, generator=generator).log_softmax(2)
    none, counts = torch.zeros(3, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    given = torch.full((3,), frames)
    assert_same(*_both(x, none, given, counts, reduction="none", zero_infinity=zero_infinity))
    assert_same(*_both(x[:, 0], none[0], given[0], counts[0]))


def test_a_label_that_is_the_blank_counts_as_any_other(generator):
    x = torch.randn(9, 3, 5, generator=generator).log_softmax(2)
    y = torch.tensor([[1, 0, 2], [0, 0, 3], [2, 2, 0]])
    assert_same(*_both(x, y, torch.tensor([9, 8, 9]), torch.tensor([3, 3, 2]), reduction="none"))


@pytest.mark.parametrize("zero_infinity", [False, True])
def test_labels_that_no_path_spells(generator, zero_infinity):
    x = torch.randn(3, 2, 5, generator=generator).log_softmax(2)
    y = torch.tensor([[1, 1, 1], [1, 2, 3]])  # the first needs five frames
    (loss, gradient), (expected, other) = _both(
        x, y, torch.tensor([3, 3]), torch.tensor([3, 3]), reduction="none", zero_infinity=zero_infinity
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:, 1], other[:, 1])
    assert torch.equal(gradient[:, 0], torch.zeros(3, 5))


def test_lengths_as_numbers_and_one_sample_without_an_axis(generator):
    x = torch.randn(9, 2, 5, generator=generator).log_softmax(2)
    assert_same(*_both(x, torch.tensor([[1, 2], [3, 3]]), (9, 7), (2, 1)))
    y = torch.tensor([3, 1, 1])
    assert_same(*_both(x[:, 0], y, torch.tensor(9), torch.tensor(3)))


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_the_function_that_has_numbers_for_reductions(generator, reduction):
    x = torch.randn(9, 2, 5, generator=generator).log_softmax(2)
    args = x, torch.tensor([[1, 2], [3, 3]]), torch.tensor([9, 7]), torch.tensor([2, 1])
    expected = torch.ctc_loss(*args, 0, reduction, True), torch.ctc_loss(*args, reduction=reduction)
    with ReplacedFunctions():
        assert_same((torch.ctc_loss(*args, 0, reduction, True), torch.ctc_loss(*args, reduction=reduction)), expected)


MODEL = """
import torch
from torch import nn
from torch.nn import functional as F


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv1d(8, 32, 3, padding=1)
        self.hidden = nn.Conv1d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 6)

    def forward(self, x):
        return self.head(F.relu(self.hidden(F.relu(self.features(x)))).transpose(1, 2))


def build_model():
    return Reader()


def example_inputs():
    return torch.randn(4, 8, 10), {"labels": torch.randint(1, 6, (4, 3)), "lengths": torch.tensor([3, 1, 2, 3])}


def loss_fn(outputs, targets):
    log_probs = outputs.log_softmax(2).transpose(0, 1)
    return F.ctc_loss(log_probs, LABELS, torch.full((4,), 10), targets["lengths"], zero_infinity=True)
"""


def test_a_compiled_step_follows_pytorch(model_file, tmp_path):
    source = load_model(model_file(MODEL.replace("LABELS", 'targets["labels"]')))
    assert_follows_pytorch(source, tmp_path / "reader.fqt")


def test_labels_in_one_row_are_refused_with_their_line(model_file):
    text = MODEL.replace("LABELS", 'targets["labels"].flatten()').replace("[3, 1, 2, 3]", "[3, 3, 3, 3]")
    path = model_file(text)
    with pytest.raises(FqtError, match="in one row") as refused:
        lower_model(load_model(path), CompileOptions())
    assert refused.value.code == "FQT104"
    assert refused.value.location is not None
    assert "F.ctc_loss" in path.read_text().splitlines()[refused.value.location.line - 1]


@pytest.mark.parametrize("wrong", [{"labels": 6}, {"labels": -1}, {"lengths": 4}, {"lengths": -1}], ids=str)
def test_a_label_that_is_no_class_and_a_length_that_is_too_long_are_no_number(generator, wrong):
    x = torch.randn(8, 2, 6, generator=generator).log_softmax(2)
    given = {"labels": torch.tensor([[1, 2, 3], [4, 5, 1]]), "lengths": torch.tensor([3, 2])}
    ((name, value),) = wrong.items()
    given[name].view(-1)[0] = value
    with ReplacedFunctions():
        loss = F.ctc_loss(x, given["labels"], torch.tensor([8, 8]), given["lengths"], reduction="none")
    assert torch.isnan(loss).tolist() == [True, False]
