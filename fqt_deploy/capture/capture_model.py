"""Capture of everything that is compiled of a model: its training step and its prediction."""

from __future__ import annotations

import contextlib

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.capture.prediction import capture_prediction_graph
from fqt_deploy.core.diagnostics import FqtError, user_root
from fqt_deploy.core.graph import TrainingGraph


def capture_model(source: ModelSource) -> tuple[TrainingGraph, TrainingGraph]:
    """Trace ``source`` in training and in evaluation mode.

    Returns:
        The training step with its backward, and the prediction, both @CAPTURED; they share their state by name.

    Raises:
        FqtError: as ``capture_training_graph`` and ``capture_prediction_graph``; FQT104 for state of one mode only.
    """
    train = capture_training_graph(source.module, source.loss_fn, source.example_inputs)
    predict = capture_prediction_graph(source.module, source.example_inputs[0])
    train.example = source.example_inputs[0]
    if predict.state.keys() - train.state.keys():
        raise FqtError(
            "a tensor that is no buffer is used in evaluation mode only", code="FQT104", hint="register_buffer() it"
        )
    return train, predict


def user_code(source: ModelSource) -> contextlib.AbstractContextManager[None]:
    """A context in which errors point at lines of the folder that the model file lies in."""
    return user_root(source.path.parent) if source.path is not None else contextlib.nullcontext()
