"""Loading a user's model file."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.core.diagnostics import FqtError

MODEL = """\
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))

def example_inputs():
    return torch.zeros(6, 8), torch.arange(6) % 4
"""


@pytest.fixture
def write(tmp_path):
    def write_model(text: str = MODEL) -> Path:
        path = tmp_path / "model.py"
        path.write_text(text)
        return path

    return write_model


def fails(path: Path, code: str, **options) -> FqtError:
    with pytest.raises(FqtError) as caught:
        load_model(path, **options)
    assert caught.value.code == code
    return caught.value


def test_loads_a_minimal_file(write):
    source = load_model(write())
    assert isinstance(source, ModelSource)
    assert source.name == "model"
    assert source.options == {}
    x, y = source.example_inputs
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((6, 8), torch.float32, (6,), torch.int64)
    torch.testing.assert_close(source.loss_fn(source.module(x), y), nn.functional.cross_entropy(source.module(x), y))


def test_takes_loss_and_options(write):
    source = load_model(
        write(MODEL + "def loss_fn(o, y): return o.mean()\ndef compile_options(): return {'grad_bits': 2}\n")
    )
    assert source.options == {"grad_bits": 2}
    assert source.loss_fn(torch.ones(3), None) == 1


@pytest.mark.parametrize(("batch", "expected"), [(2, [0, 1]), (6, [0, 1, 2, 3, 0, 1]), (8, [0, 1, 2, 3, 0, 1, 0, 1])])
def test_batch_repeats_or_cuts_the_examples(write, batch, expected):
    x, y = load_model(write(), batch=batch).example_inputs
    assert x.shape[0] == batch
    assert y.tolist() == expected


def test_imports_from_the_folder_of_the_file_and_leaves_the_path_alone(write, tmp_path):
    (tmp_path / "fqt_test_neighbour.py").write_text("WIDTH = 8\n")
    before = list(sys.path)
    path = write("from fqt_test_neighbour import WIDTH\n" + MODEL.replace("nn.Linear(8", "nn.Linear(WIDTH"))
    assert load_model(path).module[0].in_features == 8
    assert sys.path == before


@pytest.mark.parametrize("name", ["build_model", "example_inputs"])
def test_a_missing_function_is_named(write, name):
    error = fails(write(MODEL.replace(f"def {name}", "def something_else")), "FQT101")
    assert name in error.render()
    assert "model.py:1" in error.render()


def test_a_missing_file(tmp_path):
    fails(tmp_path / "absent.py", "FQT101")


def test_a_syntax_error_points_at_its_line(write):
    assert "model.py:10" in fails(write(MODEL + "\ndef broken(:\n"), "FQT101").render()


@pytest.mark.parametrize("statement", ["raise KeyError('k')", "raise SystemExit(3)"])
def test_an_error_while_importing_points_at_its_line(write, statement):
    assert "model.py:10" in fails(write(MODEL + "\n" + statement + "\n"), "FQT101").render()


def test_an_error_in_a_function_points_at_its_line(write):
    error = fails(write(MODEL.replace("    return nn", "    missing_name\n    return nn")), "FQT101")
    assert "model.py:5" in error.render()
    assert "missing_name" in error.render()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("return nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))", "return 3", 4),
        ("def build_model():", "build_model = 3\ndef other():", 4),
    ],
)
def test_a_wrong_model_points_at_its_function(write, old, new, line):
    assert f"model.py:{line}" in fails(write(MODEL.replace(old, new)), "FQT101").render()


@pytest.mark.parametrize("text", ["loss_fn = 3\n", "def compile_options(): return 3\n"])
def test_a_wrong_optional_function_is_refused(write, text):
    assert "model.py:9" in fails(write(MODEL + text), "FQT101").render()


@pytest.mark.parametrize(
    "inputs",
    [
        "torch.zeros(6, 8)",
        "(torch.zeros(6, 8),)",
        "(torch.zeros(6, 8), [1, 2])",
        "(torch.zeros(6, 8), torch.arange(5))",
        "(torch.zeros(6, 8, dtype=torch.float64), torch.arange(6))",
        "(torch.zeros(6, 8), torch.arange(6, dtype=torch.int16))",
        "(torch.zeros(()), torch.arange(6))",
        "(torch.zeros(0, 8), torch.arange(0))",
        "None",
    ],
)
def test_bad_example_inputs(write, inputs):
    error = fails(write(MODEL.replace("torch.zeros(6, 8), torch.arange(6) % 4", inputs)), "FQT103")
    assert "model.py:7" in error.render()


def test_a_batch_of_zero(write):
    fails(write(), "FQT103", batch=0)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_are_loaded(write, tmp_path, name):
    model = load_model(write()).module
    state = {k: torch.full_like(v, 3) for k, v in model.state_dict().items()}
    if name.endswith("pt"):
        torch.save(state, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    loaded = load_model(write(), weights=tmp_path / name).module.state_dict()
    assert all((tensor == 3).all() for tensor in loaded.values())


def test_weights_of_another_model_list_every_difference(write, tmp_path):
    state = {"0.weight": torch.zeros(4, 9), "0.bias": torch.zeros(4), "2.weight": torch.zeros(1)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    message = fails(write(), "FQT102", weights=tmp_path / "w.safetensors").render()
    for part in ("1.running_mean", "2.weight", "[4, 9]", "[4, 8]"):
        assert part in message


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("content", [None, b"", b"not a tensor file"])
def test_unreadable_weights(write, tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    fails(write(), "FQT102", weights=tmp_path / name)


@pytest.mark.parametrize("value", [nn.Linear(2, 2), [1, 2], {"state_dict": {"a": torch.zeros(1)}}])
def test_weights_that_are_no_state_dict(write, tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    fails(write(), "FQT102", weights=tmp_path / "w.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out(write, tmp_path, prefix):
    state = load_model(write()).module.state_dict()
    given = {prefix + name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}
    torch.save(given, tmp_path / "w.pt")
    loaded = load_model(write(), weights=tmp_path / "w.pt").module.state_dict()
    assert all(torch.equal(loaded[name], given[prefix + name]) for name in loaded)


TIED = """\
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.norm(self.first(x)))

def build_model():
    return Tied()

def example_inputs():
    return torch.zeros(6, 4), torch.arange(6) % 4
"""


def test_weights_come_from_a_checkpoint(write, tmp_path):
    """A checkpoint has optimizer state too, and one name for a tensor that has two."""
    state = load_model(write(TIED)).module.state_dict()
    kept = [n for n in state if n not in ("second.weight", "norm.num_batches_tracked")]
    given = {n: torch.rand_like(state[n]) for n in kept}
    file = {("buffer/" if "running" in n else "param/") + n: t for n, t in given.items()}
    file |= {f"adam_m/{n}": torch.zeros(1) for n in kept} | {"step": torch.tensor(7)}
    safetensors.torch.save_file(file, tmp_path / "c.safetensors", {"fqt_fingerprint": "0", "fqt_format": "2"})
    model = load_model(write(TIED), weights=tmp_path / "c.safetensors").module
    assert all(torch.equal(model.state_dict()[n], t) for n, t in given.items())
    assert model.second.weight is model.first.weight


def test_a_head_of_another_size_is_left_out_on_request(write, tmp_path):
    state = load_model(write()).module.state_dict()
    given = {
        n: torch.rand(9, *t.shape[1:]) if n.startswith("1.") and t.dim() else torch.rand(t.shape)
        for n, t in state.items()
    }
    torch.save(given, tmp_path / "w.pt")
    error = fails(write(), "FQT102", weights=tmp_path / "w.pt")
    assert "--skip-weights" in error.render()
    torch.manual_seed(0)
    loaded = load_model(write(), weights=tmp_path / "w.pt", skip=["1.*"]).module.state_dict()
    assert torch.equal(loaded["0.weight"], given["0.weight"])
    assert torch.equal(loaded["1.weight"], torch.ones(4))
    assert "no weight matches 'tail.*'" in fails(write(), "FQT204", weights=tmp_path / "w.pt", skip=["tail.*"]).message
