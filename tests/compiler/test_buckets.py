"""Several shapes of batches in one artifact: one state, the shape chosen by what is passed, others refused."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import load_model, model_source
from fqt_deploy.compiler.buckets import check_same_step
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.choose_variant import batch_sizes
from fqt_deploy.runtime.data_file import read_data
from fqt_deploy.runtime.preparation import Preparation, Prepared
from fqt_deploy.runtime.training import Progress, Schedule, train
from fqt_deploy.settings import options_of
from tests.text_model import TextClassifier, texts

PLAIN = {"recipe": "none", "exclude": ("*",), "optimizer": "sgd", "lr": 0.1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    return TextClassifier()


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory):
    """The text classifier for batches of 8 and 3 texts of 12 words, and 4 of 6 words."""
    path = tmp_path_factory.mktemp("buckets") / "text.fqt"
    source = model_source(model, None, [texts(8), texts(3), texts(4, 6)])
    result = compile_model(source, options_of({**PLAIN, "verify": "numerics"}), path)
    assert result.verification is not None
    assert result.verification.ok
    assert [bucket.shapes[0] for bucket in result.manifest.buckets] == [(8, 12), (3, 12), (4, 6)]
    return path


def test_steps_of_every_shape_train_the_same_state(model, artifact):
    eager = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD([p for p in eager.parameters() if p.requires_grad], 0.1)
    session = fqt_deploy.load(artifact)
    for samples, length in ((8, 12), (4, 6), (3, 12), (8, 12), (4, 6)):
        batch = texts(samples, length)
        loss = eager(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert session.step(batch) == pytest.approx(loss.item(), rel=1e-4)
        assert session.last_logits.shape == (samples, 3)
    for name, array in session.state_dict().items():
        np.testing.assert_allclose(array, eager.state_dict()[name].numpy(), rtol=1e-3, atol=1e-5, err_msg=name)
    for samples, length in ((13, 12), (2, 12), (5, 6)):
        batch = texts(samples, length)
        with torch.no_grad():
            expected = eager.eval()(batch["input_ids"], batch["attention_mask"])["logits"].numpy()
        np.testing.assert_allclose(session.predict(batch), expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_holds_the_state_of_all_shapes(artifact, tmp_path):
    first, second = fqt_deploy.load(artifact), fqt_deploy.load(artifact)
    first.step(texts(4, 6))
    first.save_checkpoint(tmp_path / "c.safetensors")
    second.load_checkpoint(tmp_path / "c.safetensors")
    assert second.step(texts(3)) == first.step(texts(3))
    first.save(tmp_path / "again.fqt")
    assert fqt_deploy.load(tmp_path / "again.fqt").step(texts(8)) == first.step(texts(8))


def test_a_shape_that_is_not_there_is_refused_with_what_is(artifact):
    session = fqt_deploy.load(artifact)
    with pytest.raises(FqtError, match="FQT505") as caught:
        session.step(texts(5))
    assert "input_ids is [5, 12], attention_mask is [5, 12], labels is [5]" in caught.value.message
    assert "input_ids [8, 12], attention_mask [8, 12], labels [8]; input_ids [3, 12]" in caught.value.message
    with pytest.raises(FqtError, match=r"FQT505: input_ids is \[4, 7\].* \[4, 6\].*of any number of samples"):
        session.predict(texts(4, 7))
    assert session.step_count == 0


def test_the_last_batch_trains(artifact, tmp_path):
    np.savez(tmp_path / "data.npz", **{name: tensor.numpy() for name, tensor in texts(15).items()})
    session, shown = fqt_deploy.load(artifact), []
    read = read_data(tmp_path / "data.npz", session.manifest)
    data = Prepared(read, Preparation(), session.manifest, "data.npz", session.seed)
    assert batch_sizes(session.manifest.variants, 15) == [8, 3, 3]
    progress = Progress(show=lambda *told: shown.append(told))
    checkpoint, schedule = tmp_path / "c.safetensors", Schedule(cosine=False, warmup=0)
    train(session, data, epochs=2, schedule=schedule, checkpoint=checkpoint, progress=progress)
    assert [told[:2] for told in shown] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1)]


MODEL = """
import torch

def build_model():
    return torch.nn.Linear(4, 2)

def example_inputs():
    return torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
"""


def test_a_model_file_is_compiled_for_several_batches(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    source = load_model(tmp_path / "model.py", batch=(8, 2))
    assert [one.call.batch for one in (source, *source.others)] == [8, 2]
    with pytest.raises(FqtError, match="FQT103: two example batches have the shapes"):
        load_model(tmp_path / "model.py", batch=(8, 8))


@pytest.mark.thorough
def test_one_bit_layers_are_the_same_for_every_shape():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)
    )
    batches = [(torch.randn(n, 1, 8, 8), torch.arange(n) % 4) for n in (16, 4)]
    step = fqt_deploy.compile(model, example_inputs=batches)
    assert [layer.decision for layer in step.manifest.layers].count("1-bit") == 2
    losses = [step(*batches[i % 2]) for i in range(20)]
    assert losses[-2] < losses[0]


class Remembering(nn.Module):
    """Has a buffer of the shape of a batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("last", torch.zeros(()))

    def forward(self, x):
        return self.layer(x)


def test_a_step_whose_state_depends_on_the_shape_is_refused():
    options = options_of(PLAIN)
    graphs = []
    for n in (4, 2):
        model = Remembering()
        model.last = torch.zeros(n)
        source = model_source(model, F.cross_entropy, (torch.randn(n, 4), torch.arange(n) % 2))
        graphs.append(lower_model(source, options).train)
    with pytest.raises(FqtError, match=r"FQT103: the state depends on the shape of the batch: buffer/last for x \[2"):
        check_same_step(*graphs)
