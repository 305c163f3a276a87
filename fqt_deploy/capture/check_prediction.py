"""The demands on a prediction: it is a function of its own sample and of the state, and nothing else.

Predictions of any number of samples are computed in batches of the compiled size, the last one filled up with zeros. So
a sample's logits may depend on no other sample, on no random number, and must leave the state as it is.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx

from fqt_deploy.capture.sample_independence import samples_are_independent
from fqt_deploy.capture.side_effects import Effects
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph

aten = torch.ops.aten

_CODE = "FQT107"
_NOT_TAKEN = (RuntimeError, IndexError)
"""The errors of operators that do not take the numbers of another sample; what looks at floats has no lowering."""


def refuse_random(graph: TrainingGraph) -> None:
    """FQT107 at the first operator of an evaluation graph that draws random numbers."""
    for node in graph.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise FqtError(
                f"evaluation mode draws random numbers ({node.target}), so no prediction could be repeated",
                code=_CODE,
                node=node,
                hint="draw in training alone, under `if self.training:` (nn.Dropout does, F.dropout takes "
                "training=self.training); or draw in the loop, and give it to forward as an input",
            )


def refuse_moving_state(effects: Effects) -> None:
    """FQT107 for a buffer that forward changes in evaluation mode."""
    for name, line in effects.moved.items():
        short = name.removeprefix("model.")
        error = FqtError(
            f"forward changes the buffer {short} in evaluation mode, and predictions leave the state as it is",
            code=_CODE,
            hint="change it under `if self.training:`",
        )
        error.location = line
        raise error


def refuse_mixed_samples(graph: TrainingGraph, inputs: tuple[Tensor, ...]) -> None:
    """FQT107 if logits of one sample depend on another sample.

    Where the definitions of the ops do not prove that they do not, the graph is run with one sample replaced, by other
    values and by NaN, which passes through what clips or saturates; the logits of all others must stay as they are, bit
    for bit.

    Args:
        graph: the graph as captured.
        inputs: a batch of at least two samples, an array for each input of the graph's signature.
    """
    if samples_are_independent(graph):
        return
    logits = _run(graph, inputs)
    batch = inputs[0].shape[0]
    changed = torch.zeros(logits.shape, dtype=torch.bool)
    for other in _with_another_sample(inputs):
        with contextlib.suppress(*_NOT_TAKEN):
            changed |= _differ(_run(graph, other), logits)
    rows, left = divmod(logits.shape[0], batch)
    if not left and not changed.view(batch, -1)[1:].any():
        return
    for axis in (axis for axis, size in enumerate(logits.shape) if axis and size == batch):
        if changed.any() and not changed.movedim(axis, 0)[1:].any():
            raise _batch_elsewhere(logits, batch, axis)
    if left:
        raise FqtError(
            f"the model returns {logits.shape[0]} rows for {batch} samples in evaluation mode",
            code=_CODE,
            hint="return logits whose first axis is the batch",
        )
    raise FqtError(
        "in evaluation mode the logits of a sample depend on the other samples of the batch"
        + (f" ({rows} rows a sample)" if rows > 1 else ""),
        code=_CODE,
        node=_first_mixing_node(graph, inputs),
        hint="predict from the sample alone, as batch normalization does with track_running_stats=True; where "
        "samples are compared with each other, return their embeddings and compare those in loss_fn",
    )


def _batch_elsewhere(logits: Tensor, batch: int, axis: int) -> FqtError:
    """FQT107 for logits whose samples lie along another axis than the first, as recurrent layers have them."""
    return FqtError(
        f"the model returns {list(logits.shape)} for {batch} samples in evaluation mode: the samples are on axis "
        f"{axis}, not on the first",
        code=_CODE,
        hint=f"return logits.transpose(0, {axis}), and let loss_fn take them so; recurrent layers and attention of "
        "PyTorch take batch_first=True",
    )


def _with_another_sample(inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """The batch ``inputs`` with other values in sample 0, twice.

    First floats are large, and integers those of the same place in other samples; then floats are NaN, and integers
    those of any place.
    """
    generator = torch.Generator().manual_seed(0)
    return list(zip(*(_another(x, generator) for x in inputs), strict=True))


def _another(x: Tensor, generator: torch.Generator) -> list[Tensor]:
    if not x.is_floating_point():
        same_place, any_place = x.clone(), x.clone()  # a column of a table has its own range: others may not fit it
        same_place[0] = x.gather(0, torch.randint(1, x.shape[0], (1, *x.shape[1:]), generator=generator))[0]
        any_place[0] = x.flatten()[torch.randint(0, x.numel(), x[0].shape, generator=generator)]
        return [same_place, any_place]
    noisy, unknown = x.clone(), x.clone()
    noisy[0] = torch.randn(x[0].shape, generator=generator) * 1e3  # large: some sums are clipped
    unknown[0] = float("nan")
    return [noisy, unknown]


class _Interpreter(fx.Interpreter):
    """Runs a captured graph, in which a view may be one of elements that lie elsewhere than while it was traced."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A view as a reshape."""
        return super().call_function(aten.reshape.default if target is aten.view.default else target, args, kwargs)


def _run(graph: TrainingGraph, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = _Interpreter(graph.module).run(*_arguments(graph, inputs))
    return outputs[0].contiguous()


def _arguments(graph: TrainingGraph, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    given = {spec.name: x for spec, x in zip(graph.signature, inputs, strict=True)}
    return [given[name] if name in given else graph.state[name].initial.detach() for name in graph.inputs]


def _first_mixing_node(graph: TrainingGraph, inputs: tuple[Tensor, ...]) -> fx.Node | None:
    """The first node where a value that has no sample axis left differs: where samples were mixed."""
    reference = _values(graph, inputs)
    batch = inputs[0].shape[0]
    for other in _with_another_sample(inputs):
        try:
            changed = _values(graph, other)
        except _NOT_TAKEN:
            continue
        node: fx.Node
        for node in graph.graph.nodes:
            leaves = [torch.utils._pytree.tree_leaves(values.get(node)) for values in (reference, changed)]
            pairs = [pair for pair in zip(*leaves, strict=True) if isinstance(pair[0], Tensor)]
            if node.op == "call_function" and any(_mixes(a, b, batch) for a, b in pairs):
                return node
    return None


def _values(graph: TrainingGraph, inputs: tuple[Tensor, ...]) -> dict[fx.Node, object]:
    interpreter = _Interpreter(graph.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*_arguments(graph, inputs))
    return interpreter.env


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Which elements differ; NaN is equal to NaN, which other numbers in another sample cannot have made."""
    same: Tensor = (a == b) | ((a != a) & (b != b))  # integers have no isnan
    return ~same


def _mixes(a: Tensor, b: Tensor, batch: int) -> bool:
    """Whether all of a value differs that should differ in one part of ``batch`` along some axis."""
    if not a.numel() or torch.equal(a, b):
        return False
    changed = _differ(a, b)
    for axis in range(a.dim()):
        if a.shape[axis] % batch == 0:
            parts = changed.movedim(axis, 0)
            for view in (parts.reshape(batch, -1), parts.reshape(-1, batch, *parts.shape[1:]).transpose(0, 1)):
                if not view.reshape(batch, -1)[1:].any():
                    return False
    return True
