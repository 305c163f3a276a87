"""Every op: its ONNX body, run by ONNX Runtime, agrees with its reference on its sample inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.export.flat_model import flatten
from fqt_deploy.export.op_functions import op_call, op_function
from fqt_deploy.ops.lib.onnx_body import DOMAIN, OPSET, element_type, make_node
from fqt_deploy.ops.op import FQT_OPS, FqtOp, Kind

SAMPLES = [
    pytest.param(spec, arguments, id=f"{spec.name}-{i}")
    for spec in FQT_OPS.values()
    if spec.traits.kind is not Kind.COMPOSITE
    for i, arguments in enumerate(spec.sample_inputs())
]


def _flat(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _type(name: str, tensor: torch.Tensor) -> Any:
    return helper.make_tensor_value_info(name, element_type(str(tensor.dtype).split(".")[1]), tensor.shape)


def _model(spec: type[FqtOp], arguments: tuple[Any, ...], expected: list[torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    """A model of one call, and its inputs."""
    call = op_call(spec(*arguments), spec(*arguments))
    names, results = [f"in{i}" for i in range(len(call.operands))], [f"out{i}" for i in range(len(expected))]
    node = make_node(spec.name, names, results, "call", call.attributes, DOMAIN)
    graph = helper.make_graph(
        [node], spec.name, list(map(_type, names, call.operands)), list(map(_type, results, expected))
    )
    model = helper.make_model(
        graph,
        functions=[op_function(spec, tuple(call.attributes))],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    return model, {name: operand.numpy() for name, operand in zip(names, call.operands, strict=True)}


def _session(model: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.quick(per="spec")
@pytest.mark.parametrize(("spec", "arguments"), SAMPLES)
def test_body_agrees_with_reference(spec: type[FqtOp], arguments: tuple[Any, ...]) -> None:
    """Integers, booleans and bits exactly, floating point within the op's tolerance; the flat model to the bit."""
    expected = _flat(spec(*arguments).reference())
    model, feeds = _model(spec, arguments, expected)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    results = _session(model).run(None, feeds)
    for inlined, actual in zip(_session(flatten(model)).run(None, feeds), results, strict=True):
        np.testing.assert_array_equal(inlined, actual)
    for actual, wanted in zip(results, expected, strict=True):
        assert (actual.shape, actual.dtype) == (tuple(wanted.shape), wanted.numpy().dtype)
        if not wanted.dtype.is_floating_point:
            np.testing.assert_array_equal(actual, wanted.numpy())
            continue
        finite = np.isfinite(wanted.numpy())
        np.testing.assert_array_equal(actual[~finite], wanted.numpy()[~finite])
        error = float(np.linalg.norm((actual - wanted.numpy())[finite].astype(np.float64)))
        assert error <= spec.tolerance * float(np.linalg.norm(wanted.numpy()[finite].astype(np.float64)))


@pytest.mark.parametrize("name", [name for name, spec in FQT_OPS.items() if spec.traits.kind is not Kind.COMPOSITE])
def test_one_function_serves_all_samples(name: str) -> None:
    """Samples of one op differ in shapes and arguments, never in the names of the attributes."""
    spec = FQT_OPS[name]
    calls = [op_call(spec(*arguments), spec(*arguments)) for arguments in spec.sample_inputs()]
    assert len({tuple(call.attributes) for call in calls}) == 1
    assert {node.domain for node in op_function(spec, tuple(calls[0].attributes)).node} == {""}
