"""Models of several inputs and outputs: compiled steps equal eager PyTorch, and what does not fit is told by name."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import IndexRange
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.settings import options_of
from tests.text_model import CLASSES, LENGTH, WORDS, TextClassifier, texts

PLAIN = {"recipe": "none", "exclude": ("*",)}


def eager(model, loss_of, steps=4, lr=0.1):
    """Losses of ``steps`` of SGD, and the state after them."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same(step, take, expected):
    losses, state = expected
    assert [take() for _ in losses] == pytest.approx(losses, rel=1e-4)
    for name, array in step.state_dict().items():
        np.testing.assert_allclose(np.asarray(array), state[name], rtol=1e-3, atol=1e-4, err_msg=name)


class TwoInputs(nn.Module):
    """An image and numbers beside it, to two outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.beside, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), nn.Linear(8, 4)
        self.box = nn.Linear(8, 2)

    def forward(self, image, metadata):
        """Map image [N, 3, H, W] and metadata [N, 5] to boxes [N, 2] and logits [N, 4]."""
        x = torch.cat([self.conv(image).relu().mean((2, 3)), self.beside(metadata).relu()], 1)
        return self.box(x), {"classes": self.head(x)}


@pytest.mark.thorough
def test_inputs_by_position_outputs_nested_and_several_targets():
    torch.manual_seed(0)
    model = TwoInputs()
    image, metadata = torch.randn(6, 3, 6, 6), torch.randn(6, 5)
    targets = {"box": torch.randn(6, 2), "kind": torch.arange(6, dtype=torch.int32) % 4}

    def loss_fn(outputs, targets):
        boxes, named = outputs
        return F.mse_loss(boxes, targets["box"]) + F.cross_entropy(named["classes"], targets["kind"].long())

    example = ((image, metadata), targets)
    step = fqt_deploy.compile(
        model, loss_fn, example_inputs=example, prediction="1.classes", optimizer=fqt_deploy.SGD(lr=0.1), **PLAIN
    )
    assert [(s.name, s.dtype, s.role) for s in step.manifest.inputs] == [
        ("image", "float32", "input"), ("metadata", "float32", "input"), ("box", "float32", "target"),
        ("kind", "int32", "target"),
    ]  # fmt: skip
    assert (step.manifest.prediction, step.manifest.classes) == ("1.classes", 4)
    expected = eager(model, lambda m: loss_fn(m(image, metadata), targets))
    with pytest.raises(FqtError, match="FQT505: there is no value for metadata, kind"):
        step.step(image=image, box=targets["box"])
    with pytest.raises(FqtError, match=r"FQT505: metadata is float32\[6, 4\], expected float32\[6, 5\]"):
        step.step((image, metadata[:, :4]), targets)
    assert_same(step, lambda: step.step((image, metadata), targets), expected)
    logits = step.predict(image[:4], metadata[:4])
    assert np.array_equal(logits, step.predict({"metadata": metadata, "image": image, **targets})[:4])


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(1)
    return TextClassifier()


@pytest.fixture(scope="module")
def artifact(classifier, tmp_path_factory):
    """The classifier with the loss inside, as artifact and as both ONNX files."""
    folder = tmp_path_factory.mktemp("text")
    source = model_source(classifier, None, texts(8))
    options = options_of({**PLAIN, "optimizer": "sgd", "lr": 0.1})
    lowered = lower_model(source, options)
    compile_model(source, options, folder / "text.fqt", lowered=lowered)
    export_onnx(source, options, lowered, folder / "text.onnx")
    export_onnx_inference(source, options, lowered, folder / "text.infer.onnx")
    assert lowered.train.notes == (
        "1 parameter(s) are frozen, and stay as they are: head.bias",
        "2 parameter(s) are not used by the loss, and stay as they are: unused.weight, unused.bias",
    )
    return folder / "text.fqt"


def test_a_model_that_returns_its_loss_trains_as_in_pytorch(classifier, artifact):
    batch = texts(8)
    session = fqt_deploy.load(artifact)
    assert [(s.name, s.role, s.values) for s in session.manifest.inputs] == [
        ("input_ids", "input", IndexRange(0, WORDS)),
        ("attention_mask", "input", None),
        ("labels", "target", IndexRange(0, CLASSES, -100)),
    ]
    assert_same(session, lambda: session.step(batch), eager(classifier, lambda m: m(**batch)["loss"]))
    classifier_now = copy.deepcopy(classifier).eval()
    classifier_now.load_state_dict({n: torch.from_numpy(a) for n, a in session.state_dict().items()}, strict=False)
    expected = classifier_now(batch["input_ids"], batch["attention_mask"])["logits"].detach().numpy()
    np.testing.assert_allclose(session.predict(batch), expected, rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_loss(artifact):
    batch = texts(8)
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], WORDS - 1)}
    first, second = fqt_deploy.load(artifact), fqt_deploy.load(artifact)
    assert [first.step(batch) for _ in range(3)] == [second.step(other) for _ in range(3)]


def test_onnx_runtime_takes_the_same_names(artifact):
    batch = texts(8)
    ours = fqt_deploy.load(artifact)
    theirs = load_onnx(artifact.with_name("text.onnx"), infer=artifact.with_name("text.infer.onnx"))
    assert [theirs.step(**batch) for _ in range(3)] == pytest.approx([ours.step(**batch) for _ in range(3)], rel=1e-5)
    np.testing.assert_allclose(theirs.predict(batch), ours.predict(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"attention_mask": None}, "FQT505", "no value for attention_mask"),
        ({"token_type_ids": np.zeros((8, LENGTH))}, "FQT505", "no input token_type_ids; the inputs are input_ids"),
        ({"attention_mask": np.ones((8, LENGTH), bool)}, "FQT505", "attention_mask is bool[8, 12], expected int64"),
        ({"input_ids": np.ones((8, 7), np.int64)}, "FQT505", "input_ids is int64[8, 7], expected int64[8, 12]"),
        ({"input_ids": np.full((8, LENGTH), WORDS)}, "FQT507", "input_ids[0, 0] is 40; indices go from 0 to 39"),
        ({"labels": np.full(8, CLASSES)}, "FQT507", "labels[0] is 3; labels go from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(artifact, change, code, said):
    session = fqt_deploy.load(artifact)
    with pytest.raises(FqtError) as caught:
        session.step({**texts(8), **change})
    assert caught.value.code == code
    assert said in caught.value.message
    assert session.step_count == 0


@pytest.mark.thorough
def test_a_mask_of_booleans_and_another_prediction():
    torch.manual_seed(1)
    model, batch = TextClassifier(), texts(4, mask_dtype=torch.bool)
    inputs = (batch["input_ids"].int(), batch["attention_mask"])
    step = fqt_deploy.compile(
        model,
        lambda outputs, y: F.cross_entropy(outputs["logits"], y),
        example_inputs=(inputs, batch["labels"]),
        prediction="pooled",
        optimizer=fqt_deploy.SGD(lr=0.1),
        **PLAIN,
    )
    assert [(s.name, s.dtype) for s in step.manifest.inputs] == [
        ("input_ids", "int32"), ("attention_mask", "bool"), ("y", "int64")
    ]  # fmt: skip
    expected = eager(model, lambda m: F.cross_entropy(m(*inputs)["logits"], batch["labels"]))
    assert_same(step, lambda: step(*inputs, batch["labels"]), expected)
    assert step.predict(*inputs).shape == (4, 16)


class LowRank(nn.Module):
    """A linear layer that stays, and a trained product of two thin ones beside it, as LoRA adds it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.1)

    def forward(self, x):
        return self.base(x) + 2.0 * self.up(self.down(x))


@pytest.mark.thorough
def test_adapters_train_and_the_frozen_body_stays():
    torch.manual_seed(3)
    model = TextClassifier().requires_grad_(False)
    model.query, model.value = LowRank(model.query), LowRank(model.value)
    batch = texts(8)
    step = fqt_deploy.compile(model, example_inputs=batch, optimizer=fqt_deploy.SGD(lr=0.5), **PLAIN)
    assert_same(step, lambda: step(**batch), eager(model, lambda m: m(**batch)["loss"], lr=0.5))
    before, after = model.state_dict(), step.state_dict()
    moved = {name for name, array in after.items() if not torch.equal(array, before[name])}
    assert moved == {f"{layer}.{part}.weight" for layer in ("query", "value") for part in ("down", "up")}
