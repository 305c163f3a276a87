"""The Python interface of the compiler: ``fqt_deploy.compile(model, loss_fn, example_inputs=(x, y)) -> step``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from fqt_deploy.build_cache.build_artifact import build_artifact
from fqt_deploy.capture.load_model import ModelSource, model_source
from fqt_deploy.compiled_step import CompiledStep
from fqt_deploy.compiler.check import CheckReport, check_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import Optimizer
from fqt_deploy.distributed import join_group
from fqt_deploy.report import decision_table
from fqt_deploy.runtime.artifact import read_artifact
from fqt_deploy.runtime.library import Library
from fqt_deploy.settings import options_of
from fqt_deploy.torch_optimizer import translate
from fqt_deploy.untrained_model import warn_of_untrained


def compile(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    example_inputs: Any,
    optimizer: Optimizer | torch.optim.Optimizer | None = None,
    verbose: bool = False,
    **settings: Any,
) -> CompiledStep:
    """Compile a whole training step of ``model``.

    Args:
        model: any module that ``torch.export`` can trace. Its weights stay as they are: the step trains a copy, and the
            model warns, once, where it is used as if it had been trained.
        loss_fn: ``(outputs, targets) -> scalar``; default: the loss that the model returns where it takes the targets
            by keyword, as Hugging Face models take ``labels``, else cross-entropy.
        example_inputs: one batch; fixes names, shapes and dtypes. ``(inputs, targets)``, where inputs are a tensor, a
            tuple of arguments or a dict of keyword arguments and targets have any structure, or one dict with all.
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW``, ``NAdam``, ``RAdam``, ``RMSprop``, ``Adafactor``,
            ``Adadelta`` or ``Adagrad`` of the model's parameters, with its parameter groups: the step takes its
            learning rates from it, so that a ``lr_scheduler`` works. Or the class of that name in ``fqt_deploy``, or
            ``fqt_deploy.Lion``; default Adam.
        verbose: say on standard error what is being done, then which layers run in 1 bit and why the others do not, and
            what else a person should know of the model.
        **settings: the options in ``docs/options.md`` by name, such as ``recipe``, ``agp`` or ``clip_norm``.

    Raises:
        FqtError: what is wrong, with a code.
    """
    source = _source(model, loss_fn, example_inputs)
    followed = optimizer if isinstance(optimizer, torch.optim.Optimizer) else None
    if followed is not None:
        settings["optimizer"] = translate(followed, source.module)
    elif optimizer is not None:
        settings["optimizer"] = optimizer
    options = options_of(settings)
    folder = tempfile.TemporaryDirectory(prefix="fqt-")
    progress = (lambda phase: print(f"{phase} ...", file=sys.stderr)) if verbose else None
    build = build_artifact(source, options, Path(folder.name) / "step", progress=progress)
    if verbose:
        Console(stderr=True).print(decision_table(build.manifest.layers))
        for note in build.notes:
            print(note, file=sys.stderr)
    manifest, state, library = read_artifact(build.output)
    step = CompiledStep(manifest, Library(library), state)
    step.folder, step.source = folder, source
    warn_of_untrained(source.module, step)
    if followed is not None:
        step.follow(followed)
    if options.distributed != "off" and (group := join_group()) is not None:
        step.join(group)
    return step


def check(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    *,
    example_inputs: Any,
    **settings: Any,
) -> CheckReport:
    """Say what would become of ``model``: which layers run in 1 bit, and everything that cannot be compiled.

    Takes seconds: it captures the model and runs the passes, but generates no code.

    Args:
        model: any module; it is not changed.
        loss_fn: as for ``compile``.
        example_inputs: one batch, as for ``compile``.
        **settings: as ``compile`` takes them.

    Raises:
        FqtError: for wrong arguments; what is wrong with the model is in the report.
    """
    return check_model(_source(model, loss_fn, example_inputs), options_of(settings))


def _source(model: object, loss_fn: object, example_inputs: object) -> ModelSource:
    if not isinstance(model, nn.Module):
        raise FqtError(f"the model is of type {type(model).__name__}, not a torch.nn.Module", code="FQT101")
    if loss_fn is not None and not callable(loss_fn):
        raise FqtError(f"loss_fn is of type {type(loss_fn).__name__}, not a function", code="FQT101")
    return model_source(model, loss_fn, example_inputs)
