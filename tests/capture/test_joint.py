"""Capture of the joint graph: the contract with PyTorch's private interface, gradients, and what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.diagnostics import FqtError

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 4


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 4)
    )


class Straight(nn.Module):
    """A straight-through sign in plain ops, and a part of the model without gradient."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(192, 16), nn.Linear(16, 4)

    def forward(self, x):
        h = self.body(x.flatten(1))
        h = h + (h.sign() - h).detach()
        with torch.no_grad():
            scale = h.abs().mean(1, keepdim=True) + self.head.weight.mean()
        return self.head(h) * scale


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x.flatten(1))))))


class Twice(nn.Module):
    """One module called twice, and one parameter that is frozen."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(192, 192), nn.Linear(192, 4)
        self.head.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x.flatten(1))))))


class Frozen(nn.Module):
    """A body whose statistics and parameters stay as they are, as in fine-tuning; and padding, pooling and groups."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
        self.after = nn.Sequential(nn.ELU(), nn.AdaptiveMaxPool2d(4), nn.AdaptiveAvgPool2d(2), nn.BatchNorm2d(8))
        self.head = nn.Linear(32, 4)
        self.body[1].requires_grad_(False)
        self.body[2].running_mean.uniform_(-1, 1)
        self.scales = torch.linspace(0.5, 2, 4)  # belongs to no module

    def train(self, mode=True):
        super().train(mode)
        self.body[2].eval()
        return self

    def forward(self, x):
        return F.softplus(self.head(self.after(self.body(x)).flatten(1))) * self.scales


class Attention(nn.Module):
    """What transformers are built of, with and without a mask."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(24, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = x.view(6, 8, 24)
        h, _ = self.attention(x, x, x)
        q, k, v = (h + self.encoder(x)).chunk(3, 1)[0].split([8, 8, 8], -1)
        h = torch.cat([F.scaled_dot_product_attention(q, k, v, is_causal=True), q, k], -1)
        return self.head(h.mean(1))


class Recurrent(nn.Module):
    """Recurrent layers, unrolled."""

    def __init__(self):
        super().__init__()
        self.lstm, self.gru = nn.LSTM(24, 16, batch_first=True), nn.GRU(16, 4, batch_first=True)

    def forward(self, x):
        h, _ = self.lstm(x.view(6, 8, 24))
        return self.gru(h)[0][:, -1]


def instance_normed():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(288, 4))


def capture(model, loss_fn=F.cross_entropy, x=X, y=Y):
    return capture_training_graph(model, loss_fn, (x, y))


def outputs(graph):
    given = {"x": X, "y": Y} | {name: tensor.initial for name, tensor in graph.state.items()}
    return dict(zip(graph.outputs, graph.module(*[given[name] for name in graph.inputs]), strict=True))


MODELS = [convolutional, Straight, Tied, Twice, Frozen, Attention, Recurrent, instance_normed]


@pytest.mark.quick(5)
@pytest.mark.parametrize("build", MODELS)
def test_the_graph_computes_what_eager_autograd_computes(build):
    torch.manual_seed(0)
    model = build()
    eager = copy.deepcopy(model).train()
    with torch.no_grad():
        found = outputs(capture(model))
    logits = eager(X)
    loss = F.cross_entropy(logits, Y)
    loss.backward()
    torch.testing.assert_close(found["loss"], loss.detach())
    torch.testing.assert_close(found["logits"], logits.detach())
    gradients = {name: p.grad for name, p in eager.named_parameters() if p.grad is not None}
    assert {n.removeprefix("grad/") for n in found if n.startswith("grad/")} == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[f"grad/{name}"], gradient, rtol=1e-4, atol=2e-6, msg=name)
    for name, buffer in eager.named_buffers():  # those of frozen statistics are not among the outputs
        torch.testing.assert_close(found.get(f"buffer/{name}", model.get_buffer(name)), buffer, msg=name)


@pytest.mark.quick(4)
@pytest.mark.parametrize("build", MODELS)
def test_the_graph_predicts_what_the_model_predicts(build):
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            outputs(capture_prediction_graph(model, X))["logits"], model(X), rtol=1e-4, atol=1e-5
        )


WEIGHT = torch.linspace(0.5, 2, 4)


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, y: F.cross_entropy(o, y, weight=WEIGHT, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=WEIGHT),
        lambda o, y: F.mse_loss(o, o.detach() * WEIGHT),
        lambda o, y: F.binary_cross_entropy_with_logits(o, o.detach().sigmoid(), pos_weight=WEIGHT),
    ],
)
def test_losses_with_constants(loss_fn):
    model = convolutional()
    graph = capture(model, loss_fn)
    (constant,) = [name for name in graph.state if name.startswith("buffer/constant_")]
    assert torch.equal(graph.state[constant].initial, WEIGHT)
    assert constant not in graph.outputs
    with torch.no_grad():
        found = outputs(graph)["loss"]
    torch.testing.assert_close(found, loss_fn(copy.deepcopy(model)(X), Y).detach())


def test_every_node_has_what_the_passes_rely_on():
    """The contract with PyTorch's private interface: names of inputs and outputs, layer, phase, pairing, source."""
    graph = capture(convolutional())
    parameters = ["0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"]
    buffers = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert graph.inputs == ["x", "y", *(f"param/{n}" for n in parameters), *(f"buffer/{n}" for n in buffers)]
    assert graph.outputs[:2] == ["loss", "logits"]
    assert set(graph.outputs[2:]) == {f"grad/{n}" for n in parameters} | {f"buffer/{n}" for n in buffers}
    (forward,) = graph.calls(torch.ops.aten.convolution.default)
    (backward,) = graph.calls(torch.ops.aten.convolution_backward.default)
    assert (forward.meta["phase"], backward.meta["phase"]) == ("forward", "backward")
    assert forward.meta["layer"] == backward.meta["layer"] == "0"
    assert forward.meta["seq_nr"] == backward.meta["seq_nr"]
    assert "stack_trace" in forward.meta
    for node in graph.graph.nodes:
        assert node.op == "output" or "val" in node.meta, node


class Taught(nn.Module):
    """A layer whose targets a second one makes, without gradients."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = nn.Linear(64, 4), nn.Linear(64, 4)

    def forward(self, x):
        x = x.flatten(1)[:, :64]
        with torch.no_grad():
            target = self.teacher(x)
        return self.student(x) - target


def test_what_has_no_gradients_has_its_layer_and_line():
    teacher, student = capture(Taught()).calls(torch.ops.aten.addmm.default)
    assert (teacher.meta["layer"], student.meta["layer"]) == ("teacher", "student")
    assert "target = self.teacher(x)" in teacher.meta["stack_trace"]
    assert "return self.student(x) - target" in student.meta["stack_trace"]


def test_capture_leaves_the_model_and_the_terminal_alone(capfd):
    model = convolutional()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        capture(model)
        capture_prediction_graph(model, X)
    assert (model.training, model[1].training) == (True, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_prediction_reads_the_running_statistics():
    model = convolutional().eval()
    model[1].running_mean.uniform_(-1, 1)
    graph = capture_prediction_graph(model, X)
    assert graph.outputs == ["logits"]
    with torch.no_grad():
        torch.testing.assert_close(outputs(graph)["logits"], model(X))


class Wrong(nn.Module):
    """Two linear layers whose forward is a parameter of the test."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b = nn.Linear(192, 192), nn.Linear(192, 4)
        self.code = forward

    def forward(self, x):
        return self.code(self, x.flatten(1))


def branch(m, x):
    return m.b(x) if x.sum() > 0 else m.b(m.a(x))


REFUSED = {
    "control flow": (branch, "FQT104", "data-dependent"),
    "chosen rows": (
        lambda m, x: m.b(m.a(x) * x[torch.nonzero(x[:, 0])[:, 0]].sum()),
        "FQT104",
        "torch.where(mask, x, 0)",
    ),
    "number of values": (lambda m, x: m.b(m.a(x)) * torch.unique(x).numel(), "FQT104", "a fixed size"),
    "value as a number": (lambda m, x: m.b(m.a(x)) * x.sum().item(), "FQT104", "in the place of .item()"),
    "solver": (lambda m, x: m.b(m.a(x) @ torch.linalg.inv(m.a.weight)), "FQT104", "checks values"),
    "error in forward": (lambda m, x: m.absent(x), "FQT104", "absent"),
    "wrong shape": (lambda m, x: m.a(m.b(x)), "FQT104", ""),
    "a word in evaluation": (lambda m, x: m.b(m.a(x)) if m.training else "logits", "FQT105", "a str in evaluation"),
    "detached": (lambda m, x: m.b(m.a(x)).detach().requires_grad_(), "FQT106", "a.weight, a.bias, b.weight, b.bias"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_refused(case, capfd):
    forward, code, said = REFUSED[case]
    model = Wrong(forward)
    with pytest.raises(FqtError) as caught:
        _ = capture(model), capture_prediction_graph(model, X)
    assert caught.value.code == code
    assert said in caught.value.render()
    if code == "FQT104":
        assert caught.value.location is not None
        assert caught.value.location.path.name == "test_joint.py"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
        lambda o, y: None,
        lambda o, y: 3.0,
        lambda o, y: F.cross_entropy(o, y).double(),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(loss_fn):
    with pytest.raises(FqtError, match="FQT105"):
        capture(convolutional(), loss_fn)


def test_parameters_that_cannot_be_trained_are_refused():
    with pytest.raises(FqtError, match=r"FQT101: parameter 1\.weight has no shape yet"):
        capture(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)))
    with pytest.raises(FqtError, match=r"FQT105: the loss has parameters of its own: 0\.weight"):
        capture(convolutional(), nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(FqtError, match=r"FQT101: parameter 0.weight is float64"):
        capture(convolutional().double(), x=X.double())
    with pytest.raises(FqtError, match="FQT106: the model has no trainable parameter"):
        capture(convolutional().requires_grad_(False))


def test_a_failed_capture_does_not_disturb_the_next():
    for _ in range(2):
        with pytest.raises(FqtError):
            capture(Wrong(REFUSED["wrong shape"][0]))
        assert capture(convolutional()).outputs[0] == "loss"
