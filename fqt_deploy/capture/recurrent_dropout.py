"""Recurrent layers with dropout between them, traced layer by layer.

PyTorch's rule for several layers leaves the dropout out (2.13: it asks whether there are fewer layers than the number
of the one it is at), so that a trace would train another model than eager PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
"""The functions that ``nn.LSTM``, ``GRU`` and ``RNN`` call."""


def layer_by_layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function ``function``, one of ``RECURRENT``, with its dropout."""

    def run(
        input: Tensor,
        hx: Any,
        params: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Tensor, ...]:
        if not (dropout and train and num_layers > 1):
            whole = function(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first)
            return whole  # type: ignore[no-any-return]
        parts = hx if isinstance(hx, (tuple, list)) else (hx,)
        states: list[Sequence[Tensor]] = []
        for layer in range(num_layers):
            begin = [part.chunk(num_layers)[layer] for part in parts]
            weights = params[layer * len(params) // num_layers : (layer + 1) * len(params) // num_layers]
            given = begin if isinstance(hx, (tuple, list)) else begin[0]
            input, *ends = function(input, given, weights, has_biases, 1, 0.0, train, bidirectional, batch_first)
            states.append(ends)
            if layer < num_layers - 1:
                input = F.dropout(input, dropout, True)
        return input, *(torch.cat(part) for part in zip(*states, strict=True))

    return run
