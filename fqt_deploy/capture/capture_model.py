"""Capture of everything that is compiled of a model: its training step and its prediction."""

from __future__ import annotations

import contextlib

from fqt_deploy.capture.forked import forked
from fqt_deploy.capture.joint import observe_training_step, trace_training_step
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.diagnostics import FqtError, user_root
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.graph_bytes import graph_bytes, graph_of_bytes
from fqt_deploy.core.one_compilation import one_at_a_time


@one_at_a_time
def capture_model(source: ModelSource, prediction: str | None = None) -> tuple[TrainingGraph, TrainingGraph]:
    """Trace ``source`` in training and in evaluation mode.

    Args:
        source: the model.
        prediction: the name of the output that a prediction is; None: ``logits``, or the first.

    Returns:
        The training step with its backward, and the prediction, both @CAPTURED; they share their state by name.

    Raises:
        FqtError: as ``capture_training_graph`` and ``capture_prediction_graph``; FQT104 for state of one mode
            only, FQT105 if the modes predict different shapes.
    """
    module, example, call = source.module, source.example_inputs, source.call
    observed = observe_training_step(module, source.loss_fn, example, call, prediction)

    def capture_prediction() -> TrainingGraph:
        return capture_prediction_graph(module, example, call, prediction)

    with forked(lambda: graph_bytes(capture_prediction())) as beside:
        train = trace_training_step(observed)
        content = beside.result() if beside is not None else None
    predict = _received(content, train) if content is not None else None
    predict = predict or capture_prediction()
    trained, evaluated = (graph.output("logits").meta["val"] for graph in (train, predict))
    if (trained.shape, trained.dtype) != (evaluated.shape, evaluated.dtype):
        raise FqtError(
            f"the model predicts {trained.dtype}{list(trained.shape)} in training and "
            f"{evaluated.dtype}{list(evaluated.shape)} in evaluation mode".replace("torch.", ""),
            code="FQT105",
            hint="return the same of every sample in both modes (all tokens, not the last alone where there are no "
            "targets), or choose an output that both return, with "
            "prediction= or --prediction",
        )
    train.example = {spec.name: tensor for spec, tensor in zip(call.signature, example, strict=True)}
    if predict.state.keys() - train.state.keys():
        raise FqtError(
            "a tensor that is no buffer is used in evaluation mode only", code="FQT104", hint="register_buffer() it"
        )
    return train, predict


def _received(content: bytes, train: TrainingGraph) -> TrainingGraph | None:
    """The prediction that another process captured; None if it needs a tensor, or an operator, that is not here."""
    try:
        return graph_of_bytes(content, train.state)
    except (KeyError, AttributeError):
        return None


def user_code(source: ModelSource) -> contextlib.AbstractContextManager[None]:
    """A context in which errors point at lines of the folder that the model file lies in."""
    return user_root(source.path.parent) if source.path is not None else contextlib.nullcontext()
