"""Load a user's model file: its model, its loss, one batch of example inputs and its options.

The file defines ``build_model() -> nn.Module`` and ``example_inputs() -> (inputs, targets)`` and may define
``loss_fn(outputs, targets) -> scalar`` and ``compile_options() -> dict``. ``describe_call`` says what inputs may be.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqt_deploy.capture.load_weights import load_weights
from fqt_deploy.capture.model_call import ModelCall, describe_call, is_batch, returned_loss
from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.one_compilation import one_at_a_time


@dataclass(frozen=True)
class ModelSource:
    """A model together with everything needed to differentiate it.

    Attributes:
        module: the model, with its initial weights.
        loss_fn: ``(outputs, targets) -> scalar loss``.
        example_inputs: the tensors of one batch in the call's order; their shapes and dtypes become those of the
            compiled step. A pair of inputs and targets, where there is no call yet, is replaced by its tensors.
        path: the file that defines the model; None if it has none.
        options: what the file's ``compile_options()`` returned.
        call: what the tensors are to model and loss.
        others: the same model with batches of other shapes, which the same artifact is to take.
    """

    module: nn.Module
    loss_fn: Callable[[Any, Any], Tensor]
    example_inputs: Any
    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    call: ModelCall = None  # type: ignore[assignment]
    others: tuple[ModelSource, ...] = ()

    def __post_init__(self) -> None:
        if self.call is None:
            call, tensors = describe_call(self.module, self.example_inputs, own_loss=True)
            object.__setattr__(self, "call", call)
            object.__setattr__(self, "example_inputs", tensors)

    def loss_and_outputs(self, module: nn.Module, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """The loss of ``module``, this model or a copy of it, on the tensors of a batch, and what it returns."""
        return self.call.loss_and_outputs(module, self.loss_fn, tensors)

    def resized(self, batch: int) -> ModelSource:
        """The same model for ``batch`` samples alone: the example's, repeated or cut.

        Raises:
            FqtError: FQT103 for less than one sample.
        """
        if batch < 1:
            raise FqtError(f"a batch of {batch} samples cannot be compiled; it takes at least 1", code="FQT103")
        index = torch.arange(batch) % self.call.batch
        tensors = tuple(tensor[index].contiguous() for tensor in self.example_inputs)
        return replace(self, example_inputs=tensors, call=self.call.resized(batch), others=())

    def in_batches_of(self, sizes: Sequence[int]) -> ModelSource:
        """The same model for each number of samples in ``sizes`` and each shape of the examples, the first foremost."""
        sources = [source.resized(size) for source in (self, *self.others) for size in sizes]
        return with_others(sources)

    @property
    def name(self) -> str:
        """The stem of the file, or the model's class."""
        return self.path.stem if self.path is not None else type(self.module).__name__


def model_source(
    module: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor] | None,
    example: object,
    *,
    path: Path | None = None,
    options: dict[str, Any] | None = None,
) -> ModelSource:
    """The source of ``module`` with an example batch as ``describe_call`` takes it.

    Args:
        module: the model.
        loss_fn: ``(outputs, targets) -> scalar loss``; None: the model's own where it takes the targets, else
            cross-entropy.
        example: one batch, or a list of batches of different shapes.
        path: the file that defines the model.
        options: what the file says of the options.

    Raises:
        FqtError: FQT103 for an example that no step can be compiled for.
    """
    several = isinstance(example, list) and bool(example) and all(map(is_batch, example))
    sources = []
    for batch in example if isinstance(example, list) and several else [example]:
        call, tensors = describe_call(module, batch, own_loss=loss_fn is not None)
        own = loss_fn or (returned_loss if call.loss_inside else nn.functional.cross_entropy)
        sources.append(ModelSource(module, own, tensors, path, options or {}, call))
    return with_others(sources)


def with_others(sources: Sequence[ModelSource]) -> ModelSource:
    """The first of ``sources`` with the others; they are of one model, and differ in the shapes of their batches.

    Raises:
        FqtError: FQT103 for examples that differ in more than that, or not in that.
    """
    first, *others = sources
    seen = {tuple(spec.shape for spec in first.call.signature)}
    for other in others:
        told = [[(s.name, s.dtype, s.role, len(s.shape)) for s in x.call.signature] for x in (first, other)]
        if told[0] != told[1] or first.call.leaves != other.call.leaves:
            raise FqtError("the example batches differ in more than their shapes", code="FQT103")
        shapes = tuple(spec.shape for spec in other.call.signature)
        if shapes in seen:
            raise FqtError(f"two example batches have the shapes {[list(s) for s in shapes]}", code="FQT103")
        seen.add(shapes)
    return replace(first, others=tuple(others))


@one_at_a_time
def load_model(
    path: Path, *, batch: int | Sequence[int] | None = None, weights: Path | None = None, skip: Sequence[str] = ()
) -> ModelSource:
    """Run the user's file and call its functions.

    Random numbers are the same each time: a model that is compiled twice starts from the same weights, unless its file
    seeds the generators otherwise.

    Args:
        path: the file; while it runs, its folder comes first on ``sys.path``, as it does for a script.
        batch: number of samples of the compiled step, or several; the example inputs are repeated or cut to it.
        weights: a state dict or checkpoint to start from, ``.safetensors`` or a PyTorch file.
        skip: globs over names of weights that are not taken from there.

    Raises:
        FqtError: FQT101 if the file or one of its functions is missing or fails, FQT102 if the weights do not fit,
            FQT103 if the example inputs cannot be used.
    """
    path = path.resolve()
    if not path.is_file():
        raise FqtError(f"no such file: {path}", code="FQT101")
    with _importable(path.parent), _seeded():
        module = _run(path)
        model = _call(module, "build_model", path)
        if not isinstance(model, nn.Module):
            raise _wrong(path, "build_model", f"build_model() returns {_kind(model)}, not a torch.nn.Module")
        inputs = _call(module, "example_inputs", path)
        options = _call(module, "compile_options", path) if hasattr(module, "compile_options") else {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise _wrong(path, "compile_options", f"compile_options() returns {_kind(options)}, not a dict keyed by name")
    loss_fn = getattr(module, "loss_fn", None)
    if loss_fn is not None and not callable(loss_fn):
        raise _wrong(path, "loss_fn", f"loss_fn is {_kind(loss_fn)}, not a function (outputs, targets) -> loss")
    if weights is not None:
        load_weights(model, weights, skip=skip)
    try:
        source = model_source(model, loss_fn, inputs, path=path, options=options)
    except FqtError as error:
        raise _at(_definition(path, "example_inputs"), error) from None
    sizes = (batch,) if isinstance(batch, int) else batch
    return source.in_batches_of(sizes) if sizes else source


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within this context ``folder`` is first on ``sys.path``."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Within this context the generators of PyTorch, NumPy and Python begin at seed 0; then they go on as before."""
    numbers, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state(arrays)


def _run(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise FqtError(f"{path.name} is not a Python file", code="FQT101")
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _failed(path, "cannot be imported", error) from error
    finally:
        if shadowed is not None:
            sys.modules[path.stem] = shadowed
    return module


def _call(module: ModuleType, name: str, path: Path) -> Any:
    function = getattr(module, name, None)
    if function is None:
        hint = "a model file defines build_model() and example_inputs()"
        error = FqtError(f"{path.name} does not define {name}()", code="FQT101", hint=hint)
        raise _at(SourceLocation(path, 1, path.parent), error)
    if not callable(function):
        raise _wrong(path, name, f"{name} is {_kind(function)}, not a function")
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _failed(path, f"{name}() fails", error) from error


def _failed(path: Path, what: str, error: BaseException) -> FqtError:
    """The user's own error, at the innermost line of the user's folder that was being executed."""
    if isinstance(error, SyntaxError) and error.filename is not None and Path(error.filename).is_file():
        file, line = Path(error.filename), error.lineno or 1
    else:
        frames = [(Path(frame.f_code.co_filename), at) for frame, at in traceback.walk_tb(error.__traceback__)]
        inside = [(file, at) for file, at in frames if file.is_relative_to(path.parent)]
        file, line = inside[-1] if inside else (path, 1)
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    detail = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return _at(SourceLocation(file, line, path.parent), FqtError(f"{path.name}: {what}: {detail}", code="FQT101"))


def _wrong(path: Path, name: str, message: str) -> FqtError:
    return _at(_definition(path, name), FqtError(message, code="FQT101"))


def _definition(path: Path, name: str) -> SourceLocation:
    """The line of the file that defines or assigns ``name``; its first line if none does."""
    for node in ast.parse(path.read_bytes()).body:
        names: list[str] = []
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name for alias in node.names]
        if name in names:
            return SourceLocation(path, node.lineno, path.parent)
    return SourceLocation(path, 1, path.parent)


def _at(location: SourceLocation | None, error: FqtError) -> FqtError:
    error.location = location
    return error


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
