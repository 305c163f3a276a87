"""BERT with a mask: the embedding's gradient is PyTorch's and padding is not seen, in Python, C and ONNX Runtime."""

import copy
import json

import numpy as np
import pytest
import torch

import fqt_deploy
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference
from fqt_deploy.onnx_session import load_onnx
from fqt_deploy.settings import options_of
from tests.bert_model import Bert, padded_texts
from tests.packaging.test_c_api import drive

SAMPLES, RATE = 3, 0.5
SIZES = {
    "small": {"words": 60, "tokens": 16, "width": 32, "layers": 1, "heads": 2},
    "base": {"words": 30522, "tokens": 128, "width": 768, "layers": 4, "heads": 12},
}

pytestmark = pytest.mark.thorough

TRAIN = """
import numpy as np
class Array(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("shape", ctypes.POINTER(ctypes.c_int64)),
                ("ndim", ctypes.c_size_t)]
for file in FILES:
    loss, made, batch = ctypes.c_float(), [], dict(np.load(file))
    for name, array in batch.items():
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        made.append(Array(name.encode(), array.ctypes.data, shape, array.ndim))
    call("fqt_train", (Array * len(made))(*made), ctypes.c_size_t(len(made)), ctypes.byref(loss))
    print(json.dumps([loss.value, ""]))
"""


@pytest.mark.parametrize("size", ["small", pytest.param("base", marks=pytest.mark.slow)])
def test_embeddings_train_as_in_pytorch_and_padding_is_not_seen(size, c_api, tmp_path):
    torch.manual_seed(1)
    model = Bert(**SIZES[size])
    batch = padded_texts(SAMPLES, SIZES[size]["words"], SIZES[size]["tokens"])
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)}
    expected = copy.deepcopy(model).train()
    loss = expected(**batch)["loss"]
    loss.backward()
    gradient = expected.words.weight.grad.numpy()
    padding = gradient[0]
    assert not padding.any()
    assert gradient.any()

    source = model_source(model, None, batch)
    options = options_of({"recipe": "none", "exclude": ("*",), "optimizer": "sgd", "lr": RATE})
    lowered = lower_model(source, options)
    artifact = compile_model(source, options, tmp_path / "bert.fqt", lowered=lowered).output
    export_onnx(source, options, lowered, tmp_path / "bert.onnx")
    export_onnx_inference(source, options, lowered, tmp_path / "bert.infer.onnx")

    ours, again = fqt_deploy.load(artifact), fqt_deploy.load(artifact)
    before = ours.state_dict()["words.weight"].copy()
    losses = [ours.step(batch), ours.step(batch)]
    assert losses[0] == pytest.approx(loss.item(), rel=1e-5)
    assert [again.step(other), again.step(other)] == losses
    first = fqt_deploy.load(artifact)
    first.step(batch)
    moved = (before - first.state_dict()["words.weight"]) / RATE
    rounding = 2e-7 * np.abs(before).max() / RATE  # of the weight, which the gradient is read off from
    np.testing.assert_allclose(moved, gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max() + rounding)
    assert np.array_equal(moved[0], padding)

    theirs = load_onnx(tmp_path / "bert.onnx", infer=tmp_path / "bert.infer.onnx")
    assert [theirs.step(**batch)] == pytest.approx(losses[:1], rel=1e-5)
    weight = np.asarray(theirs.state_dict()["words.weight"])
    np.testing.assert_allclose(weight, first.state_dict()["words.weight"], rtol=1e-4, atol=1e-6)
    assert theirs.step(**other) == pytest.approx(losses[1], rel=1e-5)

    for name, arrays in (("batch", batch), ("other", other)):
        np.savez(tmp_path / f"{name}.npz", **{key: tensor.numpy() for key, tensor in arrays.items()})
    files = [str(tmp_path / f"{name}.npz") for name in ("batch", "other")]
    said = drive(c_api, artifact, TRAIN.replace("FILES", json.dumps(files)))
    assert [np.float32(value) for value, _ in said[2::2]] == [np.float32(loss) for loss in losses]
