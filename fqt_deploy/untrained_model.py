"""A warning for loops that go on with the model that was compiled: the step trains a copy, and the model stays."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

from torch import nn

from fqt_deploy.core.diagnostics import SourceLocation
from fqt_deploy.core.one_compilation import is_compiling
from fqt_deploy.runtime.session import Session

MESSAGE = (
    "this model has the weights that it was compiled with: step(x, y) trains a copy. Predict with step.predict(x) or "
    "step.to_torch(), keep step.state_dict() or step.save_checkpoint(file); averages are those of the option ema"
)


def warn_of_untrained(model: nn.Module, step: Session) -> None:
    """Let ``model`` warn when it is called, or its state dict is taken, after ``step`` has trained.

    It warns once of either, and not where the model was given other weights since.
    """
    handles = (
        model.register_forward_pre_hook(Notice(model, step)),
        model.register_state_dict_pre_hook(Notice(model, step)),  # type: ignore[no-untyped-call]
    )
    for handle in handles:
        weakref.finalize(step, handle.remove)


class Notice:
    """The hook of a model for forward and for its state dict; a copy of the model has one that says nothing."""

    def __init__(self, model: nn.Module | None = None, step: Session | None = None) -> None:
        self._model = weakref.ref(model) if model is not None else None
        self._step = weakref.ref(step) if step is not None else None
        self._weights = _weights_of(model) if model is not None else []

    def __call__(self, *_: Any) -> None:
        """Warn, once, if the step has trained and the model is as it was."""
        model = self._model() if self._model is not None else None
        step = self._step() if self._step is not None else None
        if model is None or step is None or is_compiling() or not step.step_count:
            return
        if _weights_of(model) == self._weights and (place := SourceLocation.of_frame(sys._getframe())) is not None:
            self._step = None
            warnings.warn_explicit(MESSAGE, UserWarning, str(place.path), place.line)

    def __reduce__(self) -> tuple[Any, ...]:
        return Notice, ()


def _weights_of(model: nn.Module) -> list[tuple[int, int]]:
    """What changes when somebody writes the weights: where they lie, and PyTorch's count of writes."""
    return [(parameter.data_ptr(), parameter._version) for parameter in model.parameters()]
