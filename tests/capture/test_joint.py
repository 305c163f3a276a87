"""Capture of the joint graph: the contract with PyTorch's private interface, gradients, and what is refused."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fqt_deploy.capture.joint import capture_prediction_graph, capture_training_graph
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
            scale = h.abs().mean() + self.head.weight.mean()
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


def capture(model, loss_fn=F.cross_entropy, x=X, y=Y):
    return capture_training_graph(model, loss_fn, (x, y))


def outputs(graph):
    given = {"x": X, "y": Y} | {name: tensor.initial for name, tensor in graph.state.items()}
    return dict(zip(graph.outputs, graph.module(*[given[name] for name in graph.inputs]), strict=True))


@pytest.mark.parametrize("build", [convolutional, Straight, Tied, Twice])
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
        torch.testing.assert_close(found[f"grad/{name}"], gradient, msg=name)
    for name, buffer in eager.named_buffers():
        torch.testing.assert_close(found[f"buffer/{name}"], buffer, msg=name)


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


class Signed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


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
    "custom function": (lambda m, x: m.b(Signed.apply(m.a(x))), "FQT104", "Signed"),
    "custom function beside a residual": (lambda m, x: m.b(m.a(x) + Signed.apply(m.a(x))), "FQT104", "Signed"),
    "control flow": (branch, "FQT104", "data-dependent"),
    "error in forward": (lambda m, x: m.absent(x), "FQT104", "absent"),
    "wrong shape": (lambda m, x: m.a(m.b(x)), "FQT104", ""),
    "tuple": (lambda m, x: (m.b(m.a(x)), x), "FQT105", "tuple"),
    "tuple in evaluation": (lambda m, x: m.b(m.a(x)) if m.training else (m.b(m.a(x)), x), "FQT105", "evaluation"),
    "unused parameter": (lambda m, x: m.b(x), "FQT106", "a.weight, a.bias"),
    "detached": (lambda m, x: m.b(m.a(x).detach()), "FQT106", "a.weight, a.bias"),
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
    with pytest.raises(FqtError, match=r"FQT101: parameter 0.weight is float64"):
        capture(convolutional().double(), x=X.double())
    with pytest.raises(FqtError, match="FQT106: the model has no trainable parameter"):
        capture(convolutional().requires_grad_(False))


def test_a_failed_capture_does_not_disturb_the_next():
    for _ in range(2):
        with pytest.raises(FqtError):
            capture(Wrong(REFUSED["wrong shape"][0]))
        assert capture(convolutional()).outputs[0] == "loss"
