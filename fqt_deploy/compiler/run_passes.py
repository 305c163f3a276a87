"""Run chosen passes, and nothing else, on a model's training graph or on a graph in a file: ``--passes``."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fqt_deploy.capture.joint import capture_training_graph
from fqt_deploy.capture.load_model import load_model
from fqt_deploy.core.diagnostics import FqtError, user_root
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.text import SUFFIX, graph_text, parse_graph
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pipeline
from fqt_deploy.passes.pass_names import parse_passes


def run_passes(file: Path, passes: str, *, batch: int | None = None) -> str:
    """The text of a graph after ``passes``; the invariants of its stage are checked before the first and after each.

    Args:
        file: a model, whose training graph is captured, or the text of a graph, ``*.fqtir``.
        passes: names with options, separated by commas; none leaves the graph as it is.
        batch: number of samples of the captured step; a text has its own.

    Raises:
        FqtError: for everything that the user can mend, among it text that is no graph.
    """
    chosen = parse_passes(passes)
    with user_root(file.parent) if file.suffix != SUFFIX else contextlib.nullcontext():
        graph = read_graph(file) if file.suffix == SUFFIX else _captured(file, batch)
        if batch not in (None, graph.batch):
            raise FqtError(f"{file} is a graph for batches of {graph.batch}", code="FQT202", hint="leave out --batch")
        Pipeline(chosen, ALWAYS).run(graph)
        return graph_text(graph)


def read_graph(file: Path) -> TrainingGraph:
    """The graph in a file of text; its state starts from filler values."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text"
        raise FqtError(f"cannot read {file}: {cause}", code="FQT208") from None
    return parse_graph(text, origin=file)


def _captured(file: Path, batch: int | None) -> TrainingGraph:
    source = load_model(file, batch=batch)
    return capture_training_graph(source.module, source.loss_fn, source.example_inputs, source.call)
