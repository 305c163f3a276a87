"""Check a model without compiling it: what runs in 1 bit and why, and everything that cannot be compiled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fqt_deploy.capture.capture_model import capture_model, user_code
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.check_synchronized import check_synchronized
from fqt_deploy.compiler.describe import layer_decisions
from fqt_deploy.compiler.gradient_note import gradient_note
from fqt_deploy.core.diagnostics import FqtError, InvariantError, together
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.manifest import LayerDecision
from fqt_deploy.core.one_compilation import one_at_a_time
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.annotate_layers import AnnotateLayers
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pass, Pipeline
from fqt_deploy.passes.pipelines import prediction_passes, training_passes


@dataclass(frozen=True)
class CheckReport:
    """The report on what would become of a model.

    Attributes:
        name: name of the model.
        layers: what is decided of each convolution and linear layer, in forward order; with errors, of those layers
            that are supported, as far as can be told before the others are.
        errors: everything that cannot be compiled, each with its line of the model and what to do.
        selection_note: why gradients are not selected as by default; empty where they are.
        notes: what a person should know of the model, such as its frozen parameters, a line each.
        gradient_note: what becomes of gradients, and what to try where the step then learns too slowly; empty where
            none is quantized.
    """

    name: str
    layers: tuple[LayerDecision, ...]
    errors: tuple[FqtError, ...]
    selection_note: str = ""
    notes: tuple[str, ...] = ()
    gradient_note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the model compiles."""
        return not self.errors

    def summary(self) -> str:
        """A line that says how many layers run in 1 bit, and whether the model compiles."""
        binarized = sum(layer.decision == "1-bit" for layer in self.layers)
        found = f"{self.name}: {binarized} of {len(self.layers)} layers in 1 bit"
        return f"{found}, the model compiles" if self.ok else f"{found}, {len(self.errors)} error(s)"

    def to_json(self) -> str:
        """The report as JSON: ``name``, ``ok``, ``layers``, ``errors`` and the notes."""
        fields = {
            "name": self.name,
            "ok": self.ok,
            "layers": [asdict(layer) for layer in self.layers],
            "errors": [_fields(error) for error in self.errors],
            "selection_note": self.selection_note,
            "gradient_note": self.gradient_note,
            "notes": list(self.notes),
        }
        return json.dumps(fields, indent=2)


@one_at_a_time
def check_model(
    source: ModelSource, options: CompileOptions, *, progress: Callable[[str], None] | None = None
) -> CheckReport:
    """Capture ``source`` and run all passes; generate no code and write nothing.

    Args:
        source: model, loss and example inputs.
        options: how it would be compiled.
        progress: told the phases.

    Raises:
        InvariantError: for a bug of ours; what the user can mend is in the report.
    """
    tell = progress or (lambda _: None)
    with user_code(source):
        tell("capturing the training step")
        try:
            check_synchronized(source.module, options)
            train, predict = capture_model(source, options.prediction)
        except FqtError as error:
            return CheckReport(source.name, (), error.parts)
        tell("running passes")
        errors = _errors(train, training_passes(options))
        errors += _errors(predict, prediction_passes(train.layers))
        if train.refused:
            AnnotateLayers().run(train)  # without the options' globs: they may match layers that are not supported
        parts = together(errors).parts if errors else ()
        told = "" if parts else gradient_note(train, options)
        return CheckReport(source.name, layer_decisions(train), parts, train.selection_note, train.notes, told)


def _errors(graph: TrainingGraph, passes: tuple[Pass, ...]) -> list[FqtError]:
    try:
        Pipeline(passes, ALWAYS).run(graph)
    except InvariantError:
        raise
    except FqtError as error:
        return [error]
    return []


def _fields(error: FqtError) -> dict[str, Any]:
    location = error.location
    return {
        "code": error.code,
        "message": error.message,
        "module": error.module,
        "source": str(location) if location is not None else None,
        "text": location.text.strip() if location is not None else "",
        "help": error.hint,
    }
