"""Recurrent layers on packed sequences, traced on padded ones: what is packed has a size that lengths say.

Where a model packs its batch for a layer of ``torch.nn``, the trace gives the layer the padded batch and the lengths::

    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    output, (h, c) = lstm(packed)
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=x.shape[1])

Each sample's state stays as it is where the sample has ended, in either direction, so that all results are those of
the packed batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import rnn

from fqt_deploy.capture.tracing import untraceable


@dataclass(frozen=True)
class PaddedSequence:
    """What stands for a ``PackedSequence``.

    Attributes:
        values: [T, N, ...], padded.
        lengths: [N] int64.
    """

    values: Tensor
    lengths: Tensor

    def fits(self) -> Tensor:
        """Which lengths are from 1 to T, [N] bool."""
        return (self.lengths >= 1) & (self.lengths <= self.values.shape[0])

    def running(self) -> Tensor:
        """Which samples go on at each step, [T, N, 1] bool."""
        return (torch.arange(self.values.shape[0])[:, None] < self.lengths)[..., None]

    def __getattr__(self, name: str) -> NoReturn:
        """FQT104: nothing else of a packed sequence is there."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise untraceable(
            f"PackedSequence.{name}: its size depends on lengths", "unpack it with pad_packed_sequence first"
        )


def _pack(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:
    """``pack_padded_sequence``; the order of the samples makes no difference. Another thread's packs as ever."""
    if not _PADDED.get():
        return _ORIGINAL_PACK(input, lengths, batch_first, enforce_sorted)
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    values = input.transpose(0, 1) if batch_first else input
    return PaddedSequence(values, lengths)


def _pad(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None) -> Any:
    """``pad_packed_sequence`` to as many steps as were packed, or more."""
    if not isinstance(sequence, PaddedSequence):
        return _ORIGINAL_PAD(sequence, batch_first, padding_value, total_length)
    steps = sequence.values.shape[0]
    if total_length is None or total_length < steps:
        raise untraceable(
            "pad_packed_sequence to the longest sample: its size depends on lengths",
            f"give total_length={steps}, the steps that were packed",
        )
    values = torch.where(_beside(sequence.running(), sequence.values), sequence.values, padding_value)
    more = total_length - steps
    if more:
        values = F.pad(values, (*[0, 0] * (values.dim() - 1), 0, more), value=padding_value)
    return values.transpose(0, 1) if batch_first else values, sequence.lengths


def _beside(running: Tensor, values: Tensor) -> Tensor:
    return running.view(*running.shape[:2], *[1] * (values.dim() - 2))


_State = tuple[Tensor, ...]
"""What a layer remembers of each sample, [N, elements] each; first what it gives."""


def _lstm(x: Tensor, h: Tensor, state: _State) -> _State:
    """One step, from the products of its input and of its state with their weights."""
    i, f, g, o = (x + h).chunk(4, 1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: _State) -> _State:
    (x_reset, x_update, x_new), (h_reset, h_update, h_new) = x.chunk(3, 1), h.chunk(3, 1)
    new = torch.tanh(x_new + torch.sigmoid(x_reset + h_reset) * h_new)
    return ((state[0] - new) * torch.sigmoid(x_update + h_update) + new,)


def _plain(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, _State], _State]:
    return lambda x, h, _: (function(x + h),)


_STEPS: dict[str, Callable[[Tensor, Tensor, _State], _State]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _plain(torch.tanh),
    "RNN_RELU": _plain(torch.relu),
}


def _forward(layer: nn.RNNBase, packed: PaddedSequence, initial: Any) -> tuple[PaddedSequence, Any]:
    """What ``layer`` gives for a packed batch: its last layer's outputs, and the states of all of its layers.

    Samples whose length is not from 1 to T, which PyTorch refuses, get NaN.
    """
    if layer.proj_size:
        raise untraceable(
            "an LSTM with proj_size on packed sequences", "give it padded sequences, or leave proj_size out"
        )
    parts = 2 if layer.mode == "LSTM" else 1
    values, running = packed.values, packed.running()
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    if initial is None:
        zeros = values.new_zeros(layer.num_layers * len(directions), values.shape[1], layer.hidden_size)
        initial = (zeros,) * parts
    given: Sequence[Tensor] = initial if layer.mode == "LSTM" or isinstance(initial, tuple) else (initial,)
    ends: list[_State] = []
    for number in range(layer.num_layers):
        outputs = []
        for suffix in directions:
            begin = tuple(torch.where(packed.fits()[:, None], part[len(ends)], math.nan) for part in given)
            output, end = _direction(layer, f"l{number}{suffix}", values, running, begin)
            outputs.append(output)
            ends.append(end)
        values = torch.cat(outputs, 2)
        if number < layer.num_layers - 1 and layer.dropout:
            values = F.dropout(values, layer.dropout, layer.training)
    states = tuple(torch.stack([end[part] for end in ends]) for part in range(parts))
    return PaddedSequence(values, packed.lengths), states if layer.mode == "LSTM" else states[0]


def _direction(layer: nn.RNNBase, name: str, values: Tensor, running: Tensor, state: _State) -> tuple[Tensor, _State]:
    """The outputs of one layer in one direction, [T, N, elements], and its state at the end."""
    w_x, w_h, b_x, b_h = (
        getattr(layer, f"{kind}_{name}", None) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    assert w_x is not None
    assert w_h is not None
    products, going = F.linear(values, w_x, b_x).unbind(0), running.unbind(0)
    outputs = []
    for place in reversed(range(len(products))) if name.endswith("_reverse") else range(len(products)):
        new = _STEPS[layer.mode](products[place], F.linear(state[0], w_h, b_h), state)
        state = tuple(torch.where(going[place], after, before) for after, before in zip(new, state, strict=True))
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if name.endswith("_reverse") else outputs), state


def _copy_of(function: Any) -> Any:
    """A function that goes on doing what ``function`` does now, whatever code that is given."""
    return FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


_ORIGINAL_PACK, _ORIGINAL_PAD = _copy_of(rnn.pack_padded_sequence), _copy_of(rnn.pad_packed_sequence)
_PADDED: ContextVar[bool] = ContextVar("padded", default=False)
"""Whether this thread is in ``padded_sequences``."""


def _packing(input: Any, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:
    from fqt_deploy.capture import padded_sequences  # it runs as a function of PyTorch's module

    return padded_sequences._pack(input, lengths, batch_first, enforce_sorted)


def _padding(
    sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None
) -> Any:
    from fqt_deploy.capture import padded_sequences

    return padded_sequences._pad(sequence, batch_first, padding_value, total_length)


@contextlib.contextmanager
def padded_sequences() -> Iterator[None]:
    """Within this context packed sequences are padded ones.

    Models import the functions by name, so that these keep their place, and get other code for the time.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_code_of(rnn.pack_padded_sequence, _packing))
        stack.enter_context(_code_of(rnn.pad_packed_sequence, _padding))
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            stack.enter_context(mock.patch.object(kind, "forward", _taking_both(kind.forward)))
        stack.callback(_PADDED.reset, _PADDED.set(True))
        yield


@contextlib.contextmanager
def _code_of(function: Any, other: Any) -> Iterator[None]:
    """Within this context ``function`` does what ``other`` does."""
    before, function.__code__ = function.__code__, other.__code__
    try:
        yield
    finally:
        function.__code__ = before


def _taking_both(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The method ``forward`` of a recurrent layer, which takes padded sequences for packed ones as well."""

    def run(layer: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        return _forward(layer, input, hx) if isinstance(input, PaddedSequence) else forward(layer, input, hx)

    return run
