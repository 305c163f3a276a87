"""Recurrent layers on packed sequences give what PyTorch gives, with the same gradients, or are refused."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.capture.padded_sequences import padded_sequences
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from tests.capture.following import assert_follows_pytorch

LENGTHS = torch.tensor([3, 6, 1, 5])


def _results(layer, x, lengths=LENGTHS, *, first, hx=None, padding=0.0):
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    output, states = layer(packed, hx)
    padded, counted = pad_packed_sequence(output, batch_first=first, total_length=7, padding_value=padding)
    assert counted.tolist() == list(lengths)
    loss = (padded * torch.linspace(0.5, 2, padded.numel()).view(padded.shape)).sum()
    states = states if isinstance(states, tuple) else (states,)
    loss = loss + sum((state * torch.linspace(-1, 1, state.numel()).view(state.shape)).sum() for state in states)
    return padded, *states, *torch.autograd.grad(loss, [x, *layer.parameters()])


def _assert_same(layer, x, *args, **kwargs):
    expected = _results(layer, x, *args, **kwargs)
    with padded_sequences():
        actual = _results(layer, x, *args, **kwargs)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("kind", "layers", "both", "first"),
    list(itertools.product([nn.LSTM, nn.GRU, nn.RNN], [1, 2], [False, True], [False, True])),
)
def test_outputs_states_and_gradients(kind, layers, both, first):
    torch.manual_seed(0)
    layer = kind(3, 4, layers, bidirectional=both, batch_first=first, bias=layers == 2)
    x = torch.randn((4, 6, 3) if first else (6, 4, 3), requires_grad=True)
    _assert_same(layer, x, first=first, padding=0.5)


def test_a_state_to_begin_with_and_lengths_as_numbers():
    torch.manual_seed(0)
    x = torch.randn(4, 6, 3, requires_grad=True)
    _assert_same(nn.LSTM(3, 4), x, first=True, hx=(torch.randn(1, 4, 4), torch.randn(1, 4, 4)), lengths=[6, 2, 2, 1])
    _assert_same(nn.GRU(3, 4), x, first=True, hx=torch.randn(1, 4, 4))
    _assert_same(nn.RNN(3, 4, nonlinearity="relu"), x, first=True)


def test_a_length_that_is_none_is_no_number():
    with padded_sequences():
        packed = pack_padded_sequence(torch.ones(6, 3, 2), torch.tensor([7, 0, 6]))
        _, state = nn.GRU(2, 2)(packed)
    assert torch.isnan(state[0]).all(1).tolist() == [True, True, False]


def test_pytorch_is_itself_afterwards():
    before = nn.LSTM.forward, pack_padded_sequence.__code__
    with pytest.raises(KeyError), padded_sequences():
        raise KeyError
    assert (nn.LSTM.forward, pack_padded_sequence.__code__) == before


def test_another_thread_packs_as_ever():
    x, found = torch.randn(6, 3, 2), []

    def pack():
        found.append(pack_padded_sequence(x, torch.tensor([6, 4, 1])))

    with padded_sequences():
        other = threading.Thread(target=pack)
        other.start()
        other.join()
    assert torch.equal(found[0].data, pack_padded_sequence(x, torch.tensor([6, 4, 1])).data)


MODEL = """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Texts(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, 3)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.words(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        packed, (state, _) = self.lstm(packed)
        outputs, _ = UNPACKED
        mean = outputs.sum(1) / lengths[:, None]
        return self.head(torch.cat([state[-2], state[-1], mean], 1))


def build_model():
    return Texts()


def example_inputs():
    tokens = torch.randint(1, 50, (6, 4))
    return {"tokens": tokens, "lengths": torch.tensor([4, 2, 3, 1, 4, 3])}, torch.randint(0, 3, (6,))
"""
UNPACKED = "pad_packed_sequence(packed, batch_first=True, total_length=tokens.shape[1])"


def test_a_compiled_step_follows_pytorch(model_file, tmp_path):
    source = load_model(model_file(MODEL.replace("UNPACKED", UNPACKED)))
    session, batch = assert_follows_pytorch(source, tmp_path / "texts.fqt")
    tokens, lengths, _ = source.example_inputs
    expected = source.module.eval()(tokens, lengths).detach().numpy()
    del batch["y"]
    assert session.predict(**batch) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("unpacked", "said"),
    [
        (UNPACKED.replace("total_length=tokens.shape[1]", ""), "total_length=4"),
        ("(packed.data.sum(0).expand(6, 1, 32), None)", "pad_packed_sequence first"),
    ],
    ids=["to the longest", "what is packed"],
)
def test_what_depends_on_lengths_is_refused_with_its_line(model_file, unpacked, said):
    path = model_file(MODEL.replace("UNPACKED", unpacked))
    with pytest.raises(FqtError) as refused:
        lower_model(load_model(path), CompileOptions())
    assert refused.value.code == "FQT104"
    assert said in (refused.value.hint or "")
    assert refused.value.location is not None
    assert "outputs, _ = " in path.read_text().splitlines()[refused.value.location.line - 1]
