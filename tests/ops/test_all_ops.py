"""Every op: its shape rule and its loop nest agree with its reference on its sample inputs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from torch._subclasses import FakeTensorMode
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import FQT_OPS, FqtOp, Kind
from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded
from fqt_deploy.targets.registry import make_target


@functools.cache
def _samples(*kinds: Kind) -> list[Any]:
    """One parameter set a sample of every op with a kernel, of the given kinds or of all."""
    return [
        pytest.param(spec, i, arguments, id=f"{spec.name}-{i}")
        for spec in FQT_OPS.values()
        if spec.traits.kind is not Kind.COMPOSITE and (not kinds or spec.traits.kind in kinds)
        for i, arguments in enumerate(spec.sample_inputs())
    ]


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _kernel(spec: type[FqtOp], arguments: tuple[Any, ...], name: str) -> Any:
    """The op's loop nest, as the CPU target schedules it: a function of the tensors, then the outputs."""
    target = make_target("cpu")
    placeholders: list[Any] = []

    def operand(argument: Any) -> Any:
        if not isinstance(argument, torch.Tensor):
            return argument
        name = f"operand{len(placeholders)}"
        placeholders.append(te.placeholder(list(argument.shape), dtype_name(argument.dtype), name=name))
        return placeholders[-1]

    outputs = _flat(spec(*map(operand, arguments)).compute())
    function = te.create_prim_func([*placeholders, *outputs])
    attributes = {"fqt.op": spec.name, "fqt.outputs": len(outputs), "tirx.noalias": False, "global_symbol": name}
    attributes[ARGUMENTS] = encoded(getattr(torch.ops.fqt, spec.name).default, arguments)
    return target.schedule(function.with_attrs(attributes)).with_attr("global_symbol", name)


def _name(spec: type[FqtOp], number: int) -> str:
    return f"{spec.name}_{number}"


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest, cases: Any) -> Any:
    """The kernels of all samples that a test will run, compiled at once."""
    kernels = {
        _name(case["spec"], case["number"]): _kernel(
            case["spec"], case["arguments"], _name(case["spec"], case["number"])
        )
        for case in cases(request.module, "library")
    }
    return tvm.compile(tvm.IRModule(kernels), make_target("cpu").tvm_target)


def _device_tensor(value: torch.Tensor) -> Any:
    return tvm.runtime.tensor(value.contiguous().numpy())


def _run(kernel: Any, arguments: tuple[Any, ...], expected: list[torch.Tensor], in_place: bool) -> list[np.ndarray]:
    """Outputs of the compiled ``kernel``, written over its first operands if ``in_place``."""
    operands = [_device_tensor(a) for a in arguments if isinstance(a, torch.Tensor)]
    outputs = operands[: len(expected)] if in_place else [_device_tensor(torch.zeros_like(e)) for e in expected]
    kernel(*operands, *outputs)
    return [output.numpy() for output in outputs]


def _assert_equal(spec: type[FqtOp], actual: np.ndarray, expected: torch.Tensor) -> None:
    if not expected.dtype.is_floating_point:
        np.testing.assert_array_equal(actual, expected.numpy())
        return
    wanted = expected.numpy()
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(actual[~finite], wanted[~finite])
    error = float(np.linalg.norm((actual - wanted)[finite].astype(np.float64)))
    assert error <= spec.tolerance * float(np.linalg.norm(wanted[finite].astype(np.float64)))


@pytest.mark.quick(per="spec")
@pytest.mark.parametrize(("spec", "number", "arguments"), _samples())
def test_fake_agrees_with_reference(spec: type[FqtOp], number: int, arguments: tuple[Any, ...]) -> None:
    """Shapes, types and contiguity; through the registered op, so that the schema is checked too."""
    op = getattr(torch.ops.fqt, spec.name)
    expected = _flat(op(*arguments))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        actual = _flat(op(*fakes))
    assert [(tuple(a.shape), a.dtype) for a in actual] == [(tuple(e.shape), e.dtype) for e in expected]
    assert all(e.is_contiguous() for e in (*actual, *expected))


@pytest.mark.quick(per="spec")
@pytest.mark.parametrize(("spec", "number", "arguments"), _samples())
def test_compiled_agrees_with_reference(
    library: Any, spec: type[FqtOp], number: int, arguments: tuple[Any, ...]
) -> None:
    """Integers and booleans exactly, floating point within the op's tolerance."""
    expected = _flat(spec(*arguments).reference())
    for actual, wanted in zip(
        _run(library[_name(spec, number)], arguments, expected, in_place=False), expected, strict=True
    ):
        _assert_equal(spec, actual, wanted)


@pytest.mark.parametrize(("spec", "number", "arguments"), _samples(Kind.UPDATE))
def test_update_in_place(library: Any, spec: type[FqtOp], number: int, arguments: tuple[Any, ...]) -> None:
    """An update may write over the operands that it replaces."""
    expected = _flat(spec(*arguments).reference())
    for actual, wanted in zip(
        _run(library[_name(spec, number)], arguments, expected, in_place=True), expected, strict=True
    ):
        _assert_equal(spec, actual, wanted)


@pytest.mark.parametrize(("spec", "number", "arguments"), _samples())
def test_cost_counts_something(spec: type[FqtOp], number: int, arguments: tuple[Any, ...]) -> None:
    """A cost is never negative and no op is free."""
    cost = spec(*arguments).cost()
    assert min(cost.flops, cost.bit_ops, cost.bytes_moved) >= 0
    assert cost.flops + cost.bit_ops + cost.bytes_moved > 0
