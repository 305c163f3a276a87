"""Layers that read one code nearly everywhere are named, with the share; others are not."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import load_model, model_source
from fqt_deploy.compiler.check import check_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.options import CompileOptions
from tests.passes.training_graphs import graph_of, labels_of

EXAMPLES = Path(__file__).parents[2] / "examples"


SIGNS = {"activation_bits": 1, "activation_grid": "sign"}
FEW_KERNELS = {"recipe": "none", "optimizer": "sgd"}
"""Notes are of the forward part."""


def notes(module, x, **options):
    """What is said of codes: activations are signs unless ``options`` say more."""
    found = graph_of(module, (x, labels_of(x)), before="insert-scq", recipe="scq", **SIGNS | options).notes
    return tuple(note for note in found if not note.startswith("the weights of"))


def between(*activations):
    return nn.Sequential(nn.Linear(40, 64), *activations, nn.Linear(64, 64), nn.Linear(64, 4))


class Squares(nn.Module):
    def forward(self, x):
        return x * x


def sloped(slope):
    return nn.PReLU(init=slope)


@pytest.mark.quick(2)
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Softplus(), Squares(), sloped(-0.5)])
def test_what_is_always_positive_has_one_sign(activation):
    (note,) = notes(between(activation), torch.randn(16, 40))
    assert note == (
        "layer '2': 100 % of the signs that it reads are + on the example batch, so that it can hardly tell samples "
        "apart; give it values around 0 (a normalized input, a norm in front of it), --bits '2=1,2' for more bits, "
        "or --exclude '2'"
    )


@pytest.mark.quick(2)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), sloped(0.25), nn.GELU()])
def test_both_signs_are_no_alarm(activation):
    """Behind a ReLU as well: zeros have the sign -1."""
    assert notes(between(activation), torch.randn(16, 40)) == ()


def test_the_remedies_that_a_note_names():
    torch.manual_seed(0)
    x = torch.randn(16, 40)
    assert notes(between(nn.Sigmoid(), nn.LayerNorm(64)), x) == ()
    assert notes(between(nn.Sigmoid()), x, exclude="2") == ()
    assert notes(between(nn.Sigmoid()), x, bits={"2": (1, 2)}) == ()


def test_pixels_from_0_to_1_that_a_layer_reads():
    x = torch.rand(16, 40, generator=torch.Generator().manual_seed(0)) + 0.01
    (note,) = notes(between(nn.ReLU()), x)
    assert note.startswith("layer '0': 100 % of the signs that it reads are + ")
    assert notes(between(nn.ReLU()), x - 0.5) == ()


@pytest.mark.quick(only=("10-99 %", "11-None"))
@pytest.mark.parametrize(("negative", "said"), [(0, "100 %"), (1, "99.9 %"), (10, "99 %"), (11, None), (500, None)])
def test_the_share_is_that_of_the_codes(negative, said):
    """Of 25 x 40 activations; rounded down, so that 100 % means all."""
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0)) + 0.1
    x[:negative] *= -1
    found = notes(between(nn.ReLU()), x.reshape(25, 40))
    assert [note.partition(" of the ")[0] for note in found] == ([f"layer '0': {said}"] if said else [])
    assert [n.replace("are -", "are +") for n in notes(between(nn.ReLU()), -x.reshape(25, 40))] == list(found)


def test_padding_is_no_activation():
    """A 3x3 convolution over 4x4 pixels reads more zeros outside than this share would bear."""
    body = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Sigmoid(), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten())
    (note,) = notes(nn.Sequential(*body, nn.Linear(512, 4)), torch.randn(8, 3, 4, 4))
    assert note.startswith("layer '2': 100 % of the signs that it reads are + ")


def test_several_bits_are_codes_of_a_grid():
    """One large value in 200 sets the spacing, and all others fall on zero."""
    x = torch.full((50, 40), 0.01).index_fill_(1, torch.tensor([0]), 0.0)
    x[::5, 1] = 1000.0
    (note,) = notes(nn.Sequential(nn.ReLU(), *between(nn.Tanh())), x, bits={"1": (1, 4)})
    assert note.startswith("layer '1': 99.5 % of the activations that it reads are 0 on the example batch")
    assert "--bits" not in note


def test_calls_of_one_layer_count_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(40, 40), nn.Linear(40, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x) + self.body(x.abs() + 0.01)))

    assert notes(Twice(), torch.randn(16, 40)) == (), "the second call alone reads one sign"
    (note,) = notes(Twice(), torch.rand(16, 40) + 0.01)
    assert note.startswith("layer 'body': 100 %")


def test_many_layers_share_a_line():
    layers = [each for _ in range(11) for each in (nn.Sigmoid(), nn.Linear(40, 40))]
    found = notes(nn.Sequential(*layers, nn.Sigmoid(), nn.Linear(40, 4)), torch.randn(16, 40))
    assert len(found) == 9
    assert found[-1] == "the same holds for 3 more layers: 17, 19, 21"


def test_a_batch_of_one_value_tells_nothing():
    (note,) = notes(between(nn.Sigmoid()), torch.zeros(16, 40))
    assert note.startswith("the example batch has one value everywhere")
    assert notes(between(nn.Sigmoid()), torch.zeros(16, 40), exclude="*") == (), "no layer is binarized"


@pytest.mark.quick
@pytest.mark.parametrize(("example", "bits"), [("digits_cnn.py", 1), ("digits_cnn.py", 2), ("vgg16_cifar.py", 1)])
def test_no_alarm_for_examples(example, bits):
    assert check_model(load_model(EXAMPLES / example, batch=8), CompileOptions(activation_bits=bits)).notes == ()


def test_nothing_is_drawn_and_nothing_changes():
    model = nn.Sequential(
        nn.Linear(40, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Sigmoid(), nn.Linear(64, 64), nn.Linear(64, 4)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, generator = torch.randn(16, 40), torch.get_rng_state()
    assert len(notes(model, x)) == 1
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.thorough
def test_it_is_said_once_for_several_shapes_of_batches():
    batches = [(torch.randn(n, 40), torch.zeros(n, dtype=torch.long)) for n in (8, 5)]
    source = model_source(between(nn.Sigmoid()), nn.functional.cross_entropy, batches)
    lowered = lower_model(source, CompileOptions(**SIGNS))
    assert len(lowered.train.notes) == 1
    assert [other.train.notes for other in lowered.others] == [()]


@pytest.mark.thorough
def test_a_verbose_compilation_says_it(capsys):
    example = (torch.randn(16, 40), torch.arange(16) % 4)
    fqt_deploy.compile(between(nn.Sigmoid()), example_inputs=example, verbose=True, **FEW_KERNELS, **SIGNS)
    assert "layer '2': 100 % of the signs" in capsys.readouterr().err
