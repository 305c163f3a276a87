"""The noise of choices: nothing in fp32, more with fewer bits, a sum over layers; of what the compiler computes."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.capture_model import capture_model
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.example_values import visit_values
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.planning.choices import CHOICES, options_for
from fqt_deploy.planning.layer_noise import FULL, MOST_NOISE, NoiseMeter, _noise, _signal, noise_of_choices


def source_of(module, x, classes=4):
    return ModelSource(module, nn.functional.cross_entropy, (x, torch.arange(len(x)) % classes))


def quantized_loss(source, options):
    """The loss on the example batch, by the compiler's own passes."""
    passes = [each for each in training_passes(options) if each.name != "find-constant-codes"]
    end = next(i for i, each in enumerate(passes) if each.name == "binarize-forward")
    train, _ = capture_model(source)
    Pipeline(tuple(passes[: end + 1])).run(train)
    found = []
    visit_values(train, [train.output("loss")], lambda _, value: found.append(float(value)))
    return found[0]


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    layers = [each for _ in range(5) for each in (nn.Linear(96, 96), nn.BatchNorm1d(96), nn.ReLU())]
    return source_of(nn.Sequential(*layers, nn.Linear(96, 4)), torch.randn(64, 96))


@pytest.fixture(scope="module")
def meter(source):
    return NoiseMeter(source, CompileOptions())


def test_fp32_has_no_noise_and_fewer_bits_have_more(meter):
    assert [record.path for record in meter.layers] == ["0", "3", "6", "9", "12"]
    assert meter.noise({}) == pytest.approx(0, abs=1e-9)
    for record in meter.layers:
        noise = noise_of_choices(meter, record.path)
        assert [*noise] == [*CHOICES]
        values = [*noise.values()]
        assert values[0] == 0
        assert values == sorted(values)
        assert noise[1] > 1.2 * noise[8] > 0.1


def test_noise_adds_up(meter):
    layers = [record.path for record in meter.layers]
    for chosen in (layers, layers[::2], layers[1::2]):
        singles = sum(meter.noise({path: 4}) for path in chosen)
        assert meter.noise(dict.fromkeys(chosen, 4)) == pytest.approx(singles, rel=0.25)


def test_signs_of_weights_alone_lose_what_theory_says(source):
    """The signs of normally distributed weights explain 2 / pi of the variance of their products."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 4))
    nn.init.normal_(module[0].weight)
    meter = NoiseMeter(source_of(module, torch.randn(512, 256)), CompileOptions())
    assert meter.noise({"0": FULL}) == pytest.approx(0.4516, abs=0.06)  # -ln(2 / pi)


def test_the_quantized_forward_pass_is_that_of_the_compiler(source, meter):
    """All layers at once, on the grids that the compiler chooses: the loss of the lowered step."""
    choices = {"0": 4, "3": None, "6": 1, "9": 2, "12": 8}
    _, loss = meter.measured({path: bits for path, bits in choices.items() if bits is not None})
    options = options_for(CompileOptions(), choices)
    assert loss == pytest.approx(quantized_loss(source, options), abs=2e-4)


def test_weights_begin_larger_where_the_compiler_makes_them_so():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    source = source_of(module, torch.randn(32, 64))
    before = module[2].weight.detach().clone()
    _, loss = NoiseMeter(source, CompileOptions()).measured({"0": 4, "2": 4})
    assert loss == pytest.approx(quantized_loss(source, CompileOptions()), abs=2e-4)
    assert torch.equal(module[2].weight, before)


def test_noise_of_outputs_that_say_nothing():
    x = torch.randn(8, 3)
    assert _noise(_signal(x), _signal(x)) == pytest.approx(0, abs=1e-9)
    assert _noise(_signal(2 * x + 5), _signal(x)) == pytest.approx(0, abs=1e-9), "scale and offset do not matter"
    assert _noise(_signal(x * torch.nan), _signal(x)) == MOST_NOISE
    assert _noise(_signal(torch.ones(8, 3)), _signal(x)) == MOST_NOISE
    assert _noise(_signal(x[:1]), _signal(x[:1])) == pytest.approx(0, abs=1e-9), "one sample has no mean to leave out"
