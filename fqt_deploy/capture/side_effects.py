"""Side effects of a forward pass besides its result: buffers, which the step moves, and what it cannot.

A trace records tensor operations. An assignment to a buffer, a counter in a Python attribute or a number drawn by
``random`` leaves no operation behind. So forward is run eagerly, twice from the same tensors and the same seed: what
the first run leaves behind shows in the second.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from fqt_deploy.capture.eager_run import (
    MODULE_ATTRIBUTES,
    EagerRun,
    address_of,
    attributes_restored,
    equal,
    generator_states,
    generators_restored,
    plain_attributes,
    run_eagerly,
    run_without_values,
    state_tensors,
)  # fmt: skip
from fqt_deploy.core.diagnostics import FqtError, SourceLocation

_RUNS = 2
_FEW = 2
"""Samples that are enough where forward does the same with all: one would fail in batch normalization."""
_TOLERANCE = 1e-4
"""Relative difference of two runs that is rounding: eager kernels may add up in another order on other threads."""


@dataclass(frozen=True)
class Effects:
    """The changes that one forward pass made.

    Attributes:
        moved: names of the buffers whose values changed, to the line that assigned them where one did.
        assigned: names of the buffers that are another tensor afterwards.
    """

    moved: dict[str, SourceLocation | None]
    assigned: frozenset[str]


def observe_forward(module: nn.Module, args: tuple[Tensor, ...], what: str, prefix: str = "model.") -> Effects:
    """Run ``module`` on ``args`` eagerly and say what it changes; the module is afterwards as it was.

    Args:
        module: the module, in the mode that is to be traced.
        args: the arguments of its forward.
        what: the step that is to be traced, for messages.
        prefix: the prefix of the names of the user's parameters and buffers, which is left out of messages.

    Raises:
        FqtError: FQT104 if forward changes what a compiled step cannot: a Python attribute that later passes read, a
            parameter, an input, or the state of Python's or NumPy's generators.
    """
    tensors = state_tensors(module)
    paths = {id(m): name for name, m in module.named_modules()}
    before = plain_attributes(module)
    records, drawn = _observed(module, tensors, args, what)
    if drawn:
        message = "forward draws numbers from Python's or NumPy's generator, which a trace takes as constants"
        _refuse(module, prefix[:-1], message, hint="draw them with torch, such as torch.rand_like(x)")
    first, second = records
    if first.through_data:
        message, line = "forward writes through .data, which no trace records", first.through_data[0]
        _refuse(module, "", message, hint="write under torch.no_grad(): x.copy_(...)", line=line)
    _check_attributes(module, before, first, second)
    lines = {name: first.in_place.get(address_of(tensor)) for name, tensor in first.after.items()}
    lines |= {f"{paths[m]}.{name}".removeprefix("."): line for (m, name), line in first.lines.items() if m in paths}
    if wrong := [name for name in first.changed if isinstance(tensors[name], nn.Parameter)]:
        _refuse(
            module, wrong[0].rpartition(".")[0],
            f"forward changes the parameter {wrong[0].removeprefix(prefix)}, which only the optimizer may",
            hint="compute with a changed value, such as self.weight.clamp(-1, 1), and leave the parameter; averages of "
            "the parameters, as of a momentum encoder, are those of the option ema",
            line=lines.get(wrong[0]),
        )  # fmt: skip
    assigned = frozenset(n for n in first.assigned if n in first.after and not isinstance(tensors[n], nn.Parameter))
    _check_assigned(module, assigned, tensors, first.after, lines, prefix)
    return Effects({name: lines.get(name) for name in first.changed}, assigned)


def _observed(
    module: nn.Module, tensors: dict[str, Tensor], args: tuple[Tensor, ...], what: str
) -> tuple[list[EagerRun], bool]:
    """The runs, and whether they drew numbers from Python's or NumPy's generator.

    Two samples show what all do, if forward does the same with all: calls the same functions of PyTorch in the same
    order, and assigns the same attributes the same plain values. That is seen without the work, on tensors without
    values. Where forward reads values, or minds the number of samples, it runs on all of them.
    """
    few = tuple(arg[:_FEW] for arg in args)
    if all(arg.shape[0] > _FEW for arg in args):
        with contextlib.suppress(FqtError):
            records, drawn = _runs(module, tensors, few, what)
            with attributes_restored(module), generators_restored():
                generators = generator_states()
                whole = run_without_values(module, tensors, args, what)
                same = drawn == (generators != generator_states())
            if same and whole.behaviour() == records[0].behaviour():
                return records, drawn
    return _runs(module, tensors, args, what)


def _runs(
    module: nn.Module, tensors: dict[str, Tensor], args: tuple[Tensor, ...], what: str
) -> tuple[list[EagerRun], bool]:
    """Runs on ``args``, each from what the one before it left in Python, and whether numbers were drawn."""
    records: list[EagerRun] = []
    with attributes_restored(module), generators_restored():
        generators = generator_states()
        for _ in range(_RUNS):
            inputs = tuple(arg.clone() for arg in args)
            records.append(run_eagerly(module, tensors, inputs, what))
            _check_inputs(module, args, inputs, records[-1])
        return records, generators != generator_states()


@contextlib.contextmanager
def moving(module: nn.Module, assigned: Iterable[str]) -> Iterator[None]:
    """Within this context forward may assign to the buffers ``assigned``: their last values are written into them."""
    originals: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for name in sorted(assigned):
        path, _, key = name.rpartition(".")
        buffers = module.get_submodule(path)._buffers
        original = buffers[key]
        assert original is not None
        originals.append((buffers, key, original))
        buffers[key] = original.clone()
    yield
    with torch.no_grad():
        for buffers, key, original in originals:
            last = buffers[key]
            assert last is not None
            original.copy_(last)
            buffers[key] = original


def refuse_lost(module: nn.Module, effects: Effects, kept: set[str], prefix: str = "model.") -> None:
    """FQT104 for a buffer that forward changes and the traced step does not.

    Args:
        module: whose forward it is.
        effects: the effects of forward in eager PyTorch.
        kept: names of the buffers that the trace updates.
        prefix: left out of the message.
    """
    for name, line in effects.moved.items():
        if name not in kept:
            short = name.removeprefix(prefix)
            _refuse(
                module, name.rpartition(".")[0],
                f"forward changes the buffer {short} in a way that tracing does not record",
                hint=f"write self.{short.rpartition('.')[2]}.copy_(...), under torch.no_grad()",
                line=line,
            )  # fmt: skip


def _check_inputs(module: nn.Module, args: tuple[Tensor, ...], inputs: tuple[Tensor, ...], record: EagerRun) -> None:
    for given, left in zip(args, inputs, strict=True):
        if left._version or not equal(given, left):
            _refuse(
                module, "", "forward or loss changes its input in place",
                hint="write x = x * 2 in place of x *= 2",
                line=record.in_place.get(address_of(left)),
            )  # fmt: skip


def _check_attributes(module: nn.Module, before: dict[tuple[str, str], Any], first: EagerRun, second: EagerRun) -> None:
    """Refuse Python attributes that forward changes each time, and those whose change changes what it computes."""
    changed = [key for key in first.attributes if first.attributes[key] != before.get(key, first.attributes[key])]
    changing = [key for key in changed if second.attributes.get(key) != first.attributes[key]]
    same = _close(first.result, second.result)
    if not changing and same:
        return
    paths = {id(m): name for name, m in module.named_modules()}
    lines = {(paths.get(m, ""), name): line for record in (second, first) for (m, name), line in record.lines.items()}
    path, name = (changing or changed or [key for key in lines if key[1] not in MODULE_ATTRIBUTES] or [("", "")])[0]
    what = f"the attribute {name} of {type(module.get_submodule(path)).__name__}" if name else "what is no tensor"
    _refuse(
        module, path,
        f"forward changes {what}, and a compiled step runs no Python" + ("" if same else "; the next pass reads it"),
        hint="keep it in a buffer, made with self.register_buffer(), and change that in place",
        line=lines.get((path, name)),
    )  # fmt: skip


def _check_assigned(
    module: nn.Module,
    assigned: frozenset[str],
    before: dict[str, Tensor],
    after: dict[str, Tensor],
    lines: dict[str, SourceLocation | None],
    prefix: str,
) -> None:
    for name in sorted(assigned):
        old, new = before[name], after[name]
        short, problem = name.removeprefix(prefix), None
        if new.requires_grad:
            problem, hint = "a value that has a gradient", f"self.{short.rpartition('.')[2]} = (...).detach()"
        elif (old.shape, old.dtype) != (new.shape, new.dtype):
            problem, hint = f"a {new.dtype} of shape {list(new.shape)}", f"keep it {old.dtype} {list(old.shape)}"
        if problem is not None:
            message = f"forward assigns {problem} to the buffer {short}".replace("torch.", "")
            _refuse(module, name.rpartition(".")[0], message, hint=hint.replace("torch.", ""), line=lines.get(name))


def _close(a: Any, b: Any) -> bool:
    leaves = [torch.utils._pytree.tree_leaves(tree) for tree in (a, b)]
    pairs = zip(*leaves, strict=False)
    return len(leaves[0]) == len(leaves[1]) and all(
        torch.allclose(p, q, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for p, q in pairs
        if isinstance(p, Tensor) and isinstance(q, Tensor) and p.shape == q.shape
    )


def _refuse(module: nn.Module, path: str, message: str, *, hint: str, line: SourceLocation | None = None) -> NoReturn:
    error = FqtError(message, code="FQT104", hint=hint)
    error.location = line or _definition(module, path)
    raise error


def _definition(module: nn.Module, path: str) -> SourceLocation | None:
    """The line that defines the forward of the module at ``path``, as far as it is the user's."""
    forward: Callable[..., Any] = type(module.get_submodule(path)).forward
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return None if code is None else SourceLocation._innermost([(Path(code.co_filename), code.co_firstlineno)])
