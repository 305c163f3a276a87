"""Training graphs at any stage, of any model: without the prediction and the passes behind, a third of a check."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.settings import options_of


def graph_of(module: nn.Module, batch: Any, *, before: str, loss: Any = None, **options: Any) -> TrainingGraph:
    """The training graph of ``module`` in front of the pass ``before``.

    Args:
        module: the model.
        batch: inputs and labels.
        before: the name of a pass.
        loss: the loss function; None: cross-entropy.
        **options: as ``fqt_deploy.compile`` takes them.
    """
    source = model_source(module, loss or nn.functional.cross_entropy, batch)
    graph = capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
    names: list[str] = [spec.name for spec in source.call.signature]
    graph.example = dict(zip(names, source.example_inputs, strict=True))
    passes = training_passes(options_of(options))
    Pipeline(passes[: [each.name for each in passes].index(before)], ALWAYS).run(graph)
    return graph


def labels_of(x: torch.Tensor) -> torch.Tensor:
    """One of four classes for each sample."""
    return torch.arange(len(x)) % 4
