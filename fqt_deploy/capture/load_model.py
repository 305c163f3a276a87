"""Load a user's model file: its model, its loss, one batch of example inputs and its options.

The file defines ``build_model() -> nn.Module`` and ``example_inputs() -> (x, y)`` and may define
``loss_fn(outputs, targets) -> scalar`` and ``compile_options() -> dict``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fqt_deploy.capture.load_weights import load_weights
from fqt_deploy.core.diagnostics import FqtError, SourceLocation

_DTYPES = (torch.float32, torch.int64)


@dataclass(frozen=True)
class ModelSource:
    """A model together with everything needed to differentiate it.

    Attributes:
        module: the model, with its initial weights.
        loss_fn: ``(outputs, targets) -> scalar loss``.
        example_inputs: ``(x, y)``; their shapes and dtypes become those of the compiled step.
        path: the file that defines the model; None if it has none.
        options: what the file's ``compile_options()`` returned.
    """

    module: nn.Module
    loss_fn: Callable[[Any, Tensor], Tensor]
    example_inputs: tuple[Tensor, Tensor]
    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stem of the file, or the model's class."""
        return self.path.stem if self.path is not None else type(self.module).__name__


def load_model(
    path: Path, *, batch: int | None = None, weights: Path | None = None, skip: Sequence[str] = ()
) -> ModelSource:
    """Run the user's file and call its functions.

    Args:
        path: the file; while it runs, its folder comes first on ``sys.path``, as it does for a script.
        batch: number of samples of the compiled step; the example inputs are repeated or cut to it.
        weights: a state dict or checkpoint to start from, ``.safetensors`` or a PyTorch file.
        skip: globs over names of weights that are not taken from there.

    Raises:
        FqtError: FQT101 if the file or one of its functions is missing or fails, FQT102 if the weights do not fit,
            FQT103 if the example inputs cannot be used.
    """
    path = path.resolve()
    if not path.is_file():
        raise FqtError(f"no such file: {path}", code="FQT101")
    with _importable(path.parent):
        module = _run(path)
        model = _call(module, "build_model", path)
        if not isinstance(model, nn.Module):
            raise _wrong(path, "build_model", f"build_model() returns {_kind(model)}, not a torch.nn.Module")
        inputs = check_example_inputs(_call(module, "example_inputs", path), _definition(path, "example_inputs"))
        options = _call(module, "compile_options", path) if hasattr(module, "compile_options") else {}
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise _wrong(path, "compile_options", f"compile_options() returns {_kind(options)}, not a dict keyed by name")
    loss_fn = getattr(module, "loss_fn", nn.functional.cross_entropy)
    if not callable(loss_fn):
        raise _wrong(path, "loss_fn", f"loss_fn is {_kind(loss_fn)}, not a function (outputs, targets) -> loss")
    if weights is not None:
        load_weights(model, weights, skip=skip)
    return ModelSource(model, loss_fn, inputs if batch is None else _resize(inputs, batch), path, options)


def check_example_inputs(inputs: object, location: SourceLocation | None = None) -> tuple[Tensor, Tensor]:
    """Check that ``inputs`` is a pair of CPU tensors with one batch size, and detach it.

    Raises:
        FqtError: FQT103, pointing at ``location``.
    """
    if not isinstance(inputs, (tuple, list)) or len(inputs) != 2:
        found = f"{_kind(inputs)} of {len(inputs)}" if isinstance(inputs, (tuple, list)) else _kind(inputs)
        raise _at(location, FqtError(f"the example inputs are a pair (inputs, targets); got {found}", code="FQT103"))
    for what, tensor in zip(("inputs", "targets"), inputs, strict=True):
        problem = _problem(tensor)
        if problem:
            raise _at(location, FqtError(f"the example {what} {problem}", code="FQT103"))
    x, y = inputs
    if x.shape[0] != y.shape[0]:
        message = f"the example inputs hold {x.shape[0]} samples and the targets {y.shape[0]}"
        raise _at(location, FqtError(message, code="FQT103", hint="the first axis of both is the batch"))
    return x.detach().contiguous(), y.detach().contiguous()


def _problem(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"are {_kind(tensor)}, not a tensor"
    if tensor.dtype not in _DTYPES:
        return f"are {str(tensor.dtype).removeprefix('torch.')}; float32 and int64 are supported"
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        return f"lie on {tensor.device} as {tensor.layout}; a dense CPU tensor is needed"
    if tensor.dim() == 0 or 0 in tensor.shape:
        return f"have shape {list(tensor.shape)}; the first axis is the batch, and none may be empty"
    return None


def _resize(inputs: tuple[Tensor, Tensor], batch: int) -> tuple[Tensor, Tensor]:
    if batch < 1:
        raise FqtError(f"a batch of {batch} samples cannot be compiled; it takes at least 1", code="FQT103")
    index = torch.arange(batch) % inputs[0].shape[0]
    return inputs[0][index].contiguous(), inputs[1][index].contiguous()


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within this context ``folder`` is first on ``sys.path``."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


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
