"""How a batch, tensors one after another, becomes the arguments of a model and of its loss, and what comes back.

A step takes and returns tensors by name. A model takes them by position or by keyword, nested or not, and returns a
tensor, a tuple, a dict or an object with fields; the loss may be one of them. ``ModelCall`` is what lies between.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec
from fqt_deploy.core.manifest_laws import RESERVED_NAMES

_DTYPES = (torch.float32, torch.int64, torch.int32, torch.bool)
_CONSTANTS = (bool, int, float, str)
_PLAIN = (dict, OrderedDict, defaultdict, list, tuple)
_TARGET_NAMES = ("start_positions", "end_positions", "target", "targets")
"""Names of targets that are not called labels, as Hugging Face models have them."""
_LOSS, _LOGITS = "loss", "logits"
_TENSOR = object()
"""Stands for a tensor among the leaves of a call."""


@dataclass(frozen=True)
class ModelCall:
    """The description of one call of a model and of its loss.

    Attributes:
        signature: the tensors of a batch in order: inputs of the model, then targets; shapes are those of the example.
        tree: structure of ``(arguments, keyword arguments, targets)``.
        leaves: the constants in it; ``_TENSOR`` where a tensor belongs.
        loss_inside: whether the model takes the targets by keyword, and returns the loss.
    """

    signature: tuple[InputSpec, ...]
    tree: TreeSpec
    leaves: tuple[Any, ...]
    loss_inside: bool

    @property
    def inputs(self) -> int:
        """Number of tensors that the model takes without targets; they come first."""
        return sum(spec.role == "input" for spec in self.signature)

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.signature[0].shape[0]

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Arguments, keyword arguments and targets with ``tensors`` in them, those of targets may be left out."""
        given = iter([*tensors, *[None] * (len(self.signature) - len(tensors))])
        filled = [next(given) if leaf is _TENSOR else leaf for leaf in self.leaves]
        args, kwargs, targets = tree_unflatten(filled, self.tree)
        return args, kwargs, targets

    def outputs(self, model: nn.Module, tensors: Sequence[Any]) -> Any:
        """What ``model`` returns for the inputs, the first of ``tensors``, without a loss that needs no targets."""
        args, kwargs, _ = self.arguments(tensors[: self.inputs])
        outputs = model(*args, **kwargs)
        return without_loss(outputs) if self.loss_inside and self.inputs == len(self.signature) else outputs

    def loss_and_outputs(self, model: nn.Module, loss_fn: Any, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """The loss on ``tensors``, all of a batch, and what ``model`` returns."""
        args, kwargs, targets = self.arguments(tensors)
        if not self.loss_inside:
            outputs = model(*args, **kwargs)
            return loss_fn(outputs, targets), outputs
        outputs = model(*args, **kwargs, **targets)
        return loss_fn(outputs, targets), without_loss(outputs)

    def resized(self, batch: int) -> ModelCall:
        """The same call for ``batch`` samples."""
        specs = tuple(dataclasses.replace(spec, shape=(batch, *spec.shape[1:])) for spec in self.signature)
        return dataclasses.replace(self, signature=specs)


def describe_call(model: nn.Module | None, example: object, *, own_loss: bool) -> tuple[ModelCall, tuple[Tensor, ...]]:
    """The call that an example batch asks for, and its tensors in order, detached and dense.

    Args:
        model: whose ``forward`` names its positional arguments; None if they are not named.
        example: ``(inputs, targets)``: a tensor, a tuple of arguments or a dict of keyword arguments, and any structure
            of targets, None or an empty one for a loss of the outputs alone. Or one dict of keyword arguments, of which
            those called labels are the targets; without any the model returns its loss, or the outputs are all of it.
        own_loss: whether a loss function was given, which takes the targets; without one a model that has
            parameters of the targets' names takes them.

    Raises:
        FqtError: FQT103 for an example that no step can be compiled for.
    """
    args, kwargs, targets, loss_inside = _split(model, example, own_loss=own_loss)
    paths, tree = tree_flatten_with_path((args, kwargs, targets))
    names = _argument_names(model, args)
    alone = isinstance(example, (tuple, list)) and isinstance(example[0], Tensor)
    specs: list[InputSpec] = []
    tensors: list[Tensor] = []
    for path, leaf in paths:
        role = "target" if _index(path[0]) == 2 else "input"
        if (role == "input" or leaf is None) and (leaf is None or isinstance(leaf, _CONSTANTS)):
            continue
        taken = [spec.name for spec in specs]
        name = "x" if alone and role == "input" else _name(path, names, taken)
        tensors.append(_checked(name, role, leaf))
        specs.append(InputSpec(name, tuple(leaf.shape), str(leaf.dtype).removeprefix("torch."), role))
    _check_names(specs)
    _check_batch(specs)
    leaves = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for _, leaf in paths)
    return ModelCall(tuple(specs), tree, leaves, loss_inside), tuple(tensors)


def _split(
    model: nn.Module | None, example: object, *, own_loss: bool
) -> tuple[tuple[Any, ...], dict[str, Any], Any, bool]:
    """Arguments, keyword arguments and targets of an example, and whether the model takes the targets."""
    if isinstance(example, Mapping):
        return _split_mapping(dict(example), own_loss=own_loss)
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        found = f"{_kind(example)} of {len(example)}" if isinstance(example, (tuple, list)) else _kind(example)
        raise FqtError(
            f"the example inputs are a pair (inputs, targets); got {found}",
            code="FQT103",
            hint="a tuple of tensors or a dict by name in the place of inputs is several; one dict with labels is all",
        )
    inputs, targets = example
    if isinstance(inputs, Mapping):
        args, kwargs = (), {str(name): value for name, value in inputs.items() if value is not None}
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}
    if isinstance(targets, Mapping):
        targets = dict(targets)
    if not own_loss and (targets is None or (isinstance(targets, (tuple, list, dict)) and not targets)):
        targets = {}  # the model returns its loss
    inside = not own_loss and isinstance(targets, dict)
    if inside and (unknown := [name for name in targets if not _takes(model, name)]):
        raise FqtError(
            f"the model's forward takes no {', '.join(unknown)}, and there is no loss function for several targets",
            code="FQT103",
            hint="define loss_fn(outputs, targets), or name the targets as forward does",
        )
    return args, kwargs, targets, inside


def _split_mapping(
    batch: dict[Any, Any], *, own_loss: bool
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any], bool]:
    batch = {str(name): value for name, value in batch.items() if value is not None}
    targets = {name: value for name, value in batch.items() if is_target_name(name) and isinstance(value, Tensor)}
    inside = bool(targets) or not own_loss
    return (), {name: value for name, value in batch.items() if name not in targets}, targets, inside


def is_batch(example: object) -> bool:
    """Whether ``example`` has the form of a batch: a pair, or a dict of all inputs."""
    return isinstance(example, Mapping) or (isinstance(example, (tuple, list)) and len(example) == 2)


def is_target_name(name: str) -> bool:
    """Whether a keyword argument of a model called ``name`` is what its loss takes."""
    return "label" in name or name in _TARGET_NAMES


def _takes(model: nn.Module | None, name: str) -> bool:
    parameters = _parameters(model)
    return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _parameters(model: nn.Module | None) -> list[inspect.Parameter]:
    try:
        return [] if model is None else list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # it is not written in Python
        return []


def _argument_names(model: nn.Module | None, args: tuple[Any, ...]) -> list[str]:
    """The names of positional arguments: those of forward's parameters, else ``x0``, ``x1``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in _parameters(model) if p.kind in kinds][: len(args)]
    return named if len(named) == len(args) else [f"x{i}" for i in range(len(args))]


def _name(path: Sequence[Any], names: list[str], taken: list[str]) -> str:
    """The name of the leaf at ``path``: of its argument, with the keys inside of that behind points."""
    place, *keys = path
    words = [str(_index(key)) for key in keys]
    if _index(place) == 0:
        words[0] = names[int(words[0])]
    elif _index(place) == 2 and (not keys or isinstance(keys[0], SequenceKey)):
        words = ["y" + "".join(words[:1]), *words[1:]]
    name = ".".join(words)
    return "target" if name == "y" and "y" in taken else name


def _index(key: Any) -> Any:
    """The key of an entry of a path: a position, a name of a dict or of a field."""
    return next(getattr(key, at) for at in ("idx", "key", "name") if hasattr(key, at))


def _checked(name: str, role: str, tensor: object) -> Tensor:
    """The tensor, detached and dense; FQT103 if no step could take it."""
    problem = hint = None
    if not isinstance(tensor, Tensor):
        problem = f"is {_kind(tensor)}, not a tensor"
    elif tensor.dtype not in _DTYPES:
        problem = f"is {str(tensor.dtype).removeprefix('torch.')}; float32, int64, int32 and bool are supported"
        hint = "give it as x.long(), or as x.float() where forward computes with it"
        if tensor.is_floating_point():
            hint = "give it as x.float(), and make the model float32, too: model.float()"
    elif tensor.device.type != "cpu" or tensor.layout != torch.strided:
        problem = f"lies on {tensor.device} as {tensor.layout}; a dense CPU tensor is needed"
    elif tensor.dim() == 0 or 0 in tensor.shape:
        problem = f"has shape {list(tensor.shape)}; the first axis is the batch, and none may be empty"
    if problem is not None:
        raise FqtError(f"the example {role} {name} {problem}", code="FQT103", hint=hint)
    assert isinstance(tensor, Tensor)
    return tensor.detach().contiguous()


def _check_names(specs: Sequence[InputSpec]) -> None:
    names = [spec.name for spec in specs]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise FqtError(f"an input and a target are both called {name}", code="FQT103", hint="rename the target")
        if not name or name in RESERVED_NAMES or set(name) & set("/:"):
            raise FqtError(
                f"an example input is called {name!r}, a name that a step uses itself",
                code="FQT103",
                hint="rename the parameter of forward, or wrap the model in a module",
            )


def _check_batch(specs: Sequence[InputSpec]) -> None:
    if not specs or specs[0].role != "input":
        raise FqtError("the example inputs hold no tensor", code="FQT103", hint="return (inputs, targets)")
    first = specs[0]
    for spec in specs:
        if spec.shape[0] != first.shape[0]:
            raise FqtError(
                f"the example {spec.role} {spec.name} has shape {list(spec.shape)}, and {first.name} has "
                f"{first.shape[0]} samples",
                code="FQT103",
                hint="the first axis of every input and target is the batch; what all samples share is a buffer",
            )


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def loss_in(outputs: Any) -> Any:
    """The loss that a model returned, alone or among its outputs; FQT105 if there is none."""
    if isinstance(outputs, Tensor) and not outputs.dim():
        return outputs
    found = fields_of(outputs).get(_LOSS)
    if found is None and isinstance(outputs, tuple) and outputs and not hasattr(outputs, "_fields"):
        found = outputs[_place_of_loss(outputs)]
    if found is not None:
        return found
    raise FqtError(
        f"the model is to return its loss, and returns {_described(outputs)} without one",
        code="FQT105",
        hint="return a dict with loss, or pass a loss_fn(outputs, targets); a target of the model is called labels",
    )


def returned_loss(outputs: Any, _targets: Any) -> Any:
    """The loss function of a model that returns its loss: it picks it."""
    return loss_in(outputs)


def without_loss(outputs: Any) -> Any:
    """The outputs of a model but for the loss; none if it returns nothing else."""
    if isinstance(outputs, Tensor) and not outputs.dim():
        return ()
    fields = fields_of(outputs)
    if _LOSS in fields:
        return {name: value for name, value in fields.items() if name != _LOSS}
    if not isinstance(outputs, tuple) or not outputs:
        return outputs
    place = _place_of_loss(outputs)
    return outputs[:place] + outputs[place + 1 :]


def _place_of_loss(outputs: tuple[Any, ...]) -> int:
    """Where the loss lies in a tuple: first, unless one of the others alone is a scalar, as in ``(logits, loss)``."""
    scalars = [i for i, x in enumerate(outputs) if isinstance(x, Tensor) and not x.dim() and x.is_floating_point()]
    return scalars[0] if len(scalars) == 1 else 0


def fields_of(outputs: Any) -> dict[str, Any]:
    """The entries of a mapping, a named tuple or a dataclass by name; none of anything else."""
    if isinstance(outputs, Mapping):
        return {str(name): value for name, value in outputs.items()}
    if isinstance(outputs, tuple) and hasattr(outputs, "_asdict"):
        return dict(outputs._asdict())
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs)}
    return {}


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """The tensors that a model returned by name: ``logits`` alone, fields by name, elements by number; nested: ``a.0``.

    What else it returns, such as a cache of keys and values, is left out.
    """
    if isinstance(outputs, Tensor):
        return {_LOGITS: outputs}
    tree = fields_of(outputs) or outputs
    paths, _ = tree_flatten_with_path(tree, is_leaf=lambda value: type(value) not in _PLAIN)
    found = {".".join(str(_index(key)) for key in path): leaf for path, leaf in paths}
    return {name: leaf for name, leaf in found.items() if isinstance(leaf, Tensor)}


def predicted(outputs: Any, name: str | None, mode: str) -> tuple[str, Tensor]:
    """The output that a prediction is, and its name: ``name``, else ``logits``, else the first of floats.

    Args:
        outputs: what the model returned, without its loss.
        name: the name that was asked for.
        mode: in which mode of the model, for messages.

    Raises:
        FqtError: FQT105 if the model returns no such tensor.
    """
    found = named_outputs(outputs)
    if name is not None and name in found:
        return name, found[name]
    if name is not None:
        raise FqtError(
            f"the model returns no {name!r} in {mode} mode; it returns {', '.join(found) or _described(outputs)}",
            code="FQT105",
            hint="choose with prediction=, or --prediction, one that it returns",
        )
    chosen = _LOGITS if _LOGITS in found else next((n for n, t in found.items() if t.is_floating_point()), None)
    if chosen is None:
        told = "its loss alone" if outputs == () else _described(outputs)
        raise FqtError(
            f"the model returns {told} in {mode} mode; a tensor of floats must be in it, which is predicted",
            code="FQT105",
            hint="return the logits, or a tuple or dict with them, such as (loss, logits)",
        )
    return chosen, found[chosen]


def _described(outputs: Any) -> str:
    fields = fields_of(outputs)
    return f"{_kind(outputs)} with {', '.join(fields)}" if fields else _kind(outputs)
