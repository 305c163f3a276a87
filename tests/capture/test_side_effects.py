"""What forward changes: buffers move as in eager PyTorch, everything else is refused with its line."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.eager_run import attributes_restored, generators_restored, run_eagerly, state_tensors
from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.capture.side_effects import observe_forward
from fqt_deploy.core.diagnostics import FqtError

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 5


class Keeping(nn.Module):
    """A linear layer with a moving average, a counter and Python attributes; its forward is the test's."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.code = nn.Linear(4, 5), forward
        self.register_buffer("average", torch.full((5,), 0.5))
        self.register_buffer("count", torch.tensor(0))
        self.calls, self.log, self.seen, self.last = 0, [], None, None

    def forward(self, x):
        return self.code(self, x)


def assigned(m, x):
    h = m.a(x)
    m.average = 0.9 * m.average + 0.1 * h.detach().mean(0)
    return h - m.average


def old_value_saved_for_backward(m, x):
    h, old = m.a(x), m.average
    m.average = 0.9 * m.average + 0.1 * h.detach().mean(0)
    return h * old


def assigned_twice(m, x):
    m.average = m.average * 0.5
    h = m.a(x) - m.average
    m.average = m.average + h.detach().mean(0)
    return h


def copied(m, x):
    h = m.a(x)
    with torch.no_grad():
        m.average.copy_(0.9 * m.average + 0.1 * h.mean(0))
    return h * m.average


def interpolated(m, x):
    h = m.a(x)
    m.average.lerp_(h.detach().mean(0), 0.1)
    return h - m.average


def counted(m, x):
    m.count += 1
    return m.a(x) / m.count


def put_into_the_dictionary(m, x):
    h = m.a(x)
    m._buffers["average"] = 0.9 * m.average + 0.1 * h.detach().mean(0)
    return h - m.average


def kept_for_later(m, x):
    """An attribute that nothing reads is no state."""
    m.last = m.a(x)
    m.seen = x.shape
    return m.last


MOVING = [
    assigned, old_value_saved_for_backward, assigned_twice, copied, interpolated, counted, put_into_the_dictionary,
    kept_for_later,
]  # fmt: skip


@pytest.mark.parametrize("forward", MOVING)
def test_buffers_move_as_in_eager_pytorch(forward):
    torch.manual_seed(0)
    model = Keeping(forward)
    graph = capture_training_graph(model, F.cross_entropy, (X, Y))
    state = {name: tensor.initial for name, tensor in graph.state.items()}
    for _ in range(3):
        with torch.no_grad():
            results = graph.module(*[{"x": X, "y": Y, **state}[name] for name in graph.inputs])
        found = dict(zip(graph.outputs, results, strict=True))
        loss = F.cross_entropy(model(X), Y)
        torch.testing.assert_close(found["loss"], loss.detach())
        state |= {name: value for name, value in found.items() if name in state}
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(state[f"buffer/{name}"], buffer)


def counts_in_an_attribute(m, x):
    m.calls += 1
    return m.a(x) * 0.9**m.calls


def counts_for_nobody(m, x):
    m.calls += 1
    return m.a(x)


def appends(m, x):
    m.log.append(len(m.log))
    return m.a(x)


def remembers(m, x):
    h = m.a(x)
    before = 0 if m.last is None else m.last
    m.last = h.detach().mean()
    return h + before


def assigns_a_gradient(m, x):
    h = m.a(x)
    m.average = h.mean(0)
    return h


def assigns_another_shape(m, x):
    m.average = torch.zeros(2, 5)
    return m.a(x)


def changes_a_parameter(m, x):
    with torch.no_grad():
        m.a.weight.clamp_(-9, 9)
    return m.a(x)


def replaces_data(m, x):
    m.average.data = 0.9 * m.average
    return m.a(x)


def writes_through_data(m, x):
    m.average.data.mul_(0.9)
    return m.a(x)


def changes_its_input(m, x):
    x *= 2
    return m.a(x)


def rolls_dice(m, x):
    return m.a(x) * random.random()


def rolls_dice_of_numpy(m, x):
    return m.a(x) * np.random.rand()


REFUSED = {
    counts_in_an_attribute: "the attribute calls of Keeping, and a compiled step runs no Python; the next pass reads",
    counts_for_nobody: "the attribute calls of Keeping, and a compiled step runs no Python",
    appends: "the attribute log of Keeping",
    remembers: "the attribute last of Keeping",
    assigns_a_gradient: "a value that has a gradient to the buffer average",
    assigns_another_shape: r"a float32 of shape \[2, 5\] to the buffer average",
    changes_a_parameter: "the parameter a.weight",
    replaces_data: "the buffer average in a way that tracing does not record",
    writes_through_data: r"through \.data",
    changes_its_input: "changes its input in place",
    rolls_dice: "Python's or NumPy's generator",
    rolls_dice_of_numpy: "Python's or NumPy's generator",
}


@pytest.mark.parametrize("forward", REFUSED)
def test_what_no_step_can_do_is_refused_with_its_line(forward, capfd):
    model = Keeping(forward)
    before = copy.deepcopy(model.__dict__["log"]), model.calls, random.getstate(), torch.get_rng_state()
    with pytest.raises(FqtError, match=REFUSED[forward]) as caught:
        capture_training_graph(model, F.cross_entropy, (X.clone(), Y))
    assert caught.value.code == "FQT104"
    assert caught.value.location is not None
    assert caught.value.location.path.name == "test_side_effects.py"
    assert (model.log, model.calls, random.getstate()) == before[:3]
    assert torch.equal(torch.get_rng_state(), before[3])
    assert capfd.readouterr() == ("", "")


def test_the_line_is_the_one_that_changes_it():
    with pytest.raises(FqtError) as caught:
        capture_training_graph(Keeping(counts_in_an_attribute), F.cross_entropy, (X, Y))
    assert caught.value.location.text.strip() == "m.calls += 1"


class Frozen(nn.Module):
    """A body in evaluation mode, as the user left it, and a head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9))
        self.head = nn.Linear(6, 5)
        self.body[1].running_mean.uniform_(-1, 1)

    def forward(self, x):
        return self.head(self.body(x))


def test_modules_in_evaluation_mode_stay_in_it():
    torch.manual_seed(0)
    model = Frozen()
    model.body.eval()
    graph = capture_training_graph(model, F.cross_entropy, (X, Y))
    assert not [name for name in graph.outputs if name.startswith("buffer/")]
    with torch.no_grad():
        given = {"x": X, "y": Y} | {name: tensor.initial for name, tensor in graph.state.items()}
        found = dict(zip(graph.outputs, graph.module(*[given[name] for name in graph.inputs]), strict=True))
        torch.testing.assert_close(found["logits"], model(X))
    assert [model.training, model.body.training, model.head.training] == [True, False, True]


def test_a_model_that_comes_in_evaluation_mode_is_trained_as_a_whole():
    graph = capture_training_graph(Frozen().eval(), F.cross_entropy, (X, Y))
    assert "buffer/body.1.running_mean" in graph.outputs
    assert graph.calls(torch.ops.aten.native_dropout.default)


def test_prediction_has_no_side_effects():
    with pytest.raises(FqtError, match="FQT107: forward changes the buffer count in evaluation mode") as caught:
        capture_prediction_graph(Keeping(counted), X)
    assert caught.value.location.text.strip() == "m.count += 1"
    assert capture_prediction_graph(Keeping(kept_for_later), X).outputs == ["logits"]


def minds_the_batch_in_python(m, x):
    if x.shape[0] > 2:
        m.calls = m.calls + 1
    return m.fc(x)


def minds_the_batch_in_a_constant(m, x):
    m.calls = m.calls + x.shape[0] - 2
    return m.fc(x)


def minds_the_batch_through_numpy(m, x):
    if x.shape[0] > 2:
        m.seen.numpy()[:] += 1
    return m.fc(x)


@pytest.mark.parametrize("forward", [minds_the_batch_in_python, minds_the_batch_in_a_constant])
def test_what_happens_with_many_samples_alone_is_refused_too(forward):
    model = observed(forward)
    with pytest.raises(FqtError, match="FQT104"):
        observe_forward(model, (torch.randn(5, 4),), "training", prefix="")
    assert model.calls == 0


def test_a_buffer_that_moves_with_many_samples_alone_is_seen():
    model = observed(minds_the_batch_through_numpy)
    assert observe_forward(model, (torch.randn(5, 4),), "training", prefix="").moved.keys() == {"seen"}
    assert not model.seen.any()


def observed(forward):
    model = nn.Module()
    model.fc, model.calls = nn.Linear(4, 3), 0
    model.register_buffer("seen", torch.zeros(1))
    model.forward = lambda x: forward(model, x)
    return model


@pytest.mark.parametrize(
    ("forward", "sizes"),
    [
        (lambda m, x: m.fc(x), [2, 2, 5]),
        (lambda m, x: m.fc(x.view(5, 4)), [2, 5, 5]),
        (lambda m, x: m.fc(x) if x.shape[0] < 5 else m.fc(x).relu(), [2, 2, 5, 5, 5]),
        (lambda m, x: torch.stack([m.fc(row) for row in x]), [2, 2, 5, 5, 5]),
    ],
    ids=["all alike", "a batch of its own", "other functions", "a loop over samples"],
)
def test_two_samples_are_run_where_all_are_treated_alike(forward, sizes):
    seen = []

    def counted(m, x):
        seen.append(x.shape[0])
        return forward(m, x)

    model = observed(counted)
    observe_forward(model, (torch.randn(5, 4),), "training", prefix="")
    assert seen == sizes


def test_a_run_keeps_copies_of_what_moved_alone():
    """Two runs of a large model must not need the memory of two more models."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    tensors = state_tensors(model)
    with attributes_restored(model), generators_restored():
        record = run_eagerly(model, tensors, (torch.randn(3, 4),), "training")
    moved = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(record.changed) == moved
    assert {name for name, tensor in record.after.items() if tensor is not tensors[name]} == moved
    assert not record.result.requires_grad
