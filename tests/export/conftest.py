"""One small model as an artifact and as ONNX files, and what every node of an ONNX file computes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import fx

from fqt_deploy.compiler.compile_model import LoweredModel, compile_model, initial_state, lower_model
from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference, export_onnx_step
from fqt_deploy.compiler.onnx_kernels import onnx_kernels
from fqt_deploy.core.graph import TrainingGraph
from fqt_deploy.core.onnx_names import NEXT, StepFiles, step_files
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.export.graph_writer import label_of
from fqt_deploy.export.onnx_model import to_onnx


@dataclass(frozen=True)
class Exported:
    """The digits network in all its forms, for batches of 8.

    Attributes:
        artifact: folder of the compiled step.
        train: ONNX file of the training step.
        infer: ONNX file of the prediction.
        step: files for every ONNX Runtime.
        lowered: the graphs that all of them come from.
    """

    artifact: Path
    train: Path
    infer: Path
    step: StepFiles
    lowered: LoweredModel


@pytest.fixture(scope="session")
def exported(digits_source, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("onnx")
    options = CompileOptions(seed=7)
    lowered = lower_model(digits_source, options)
    export_onnx(digits_source, options, lowered, folder / "digits.onnx")
    export_onnx_inference(digits_source, options, lowered, folder / "digits.infer.onnx")
    compile_model(digits_source, options, folder / "digits.fqt", lowered=lowered)
    step = step_files(folder / "digits.step.onnx")
    export_onnx_step(digits_source, options, lowered, step.step)
    return Exported(folder / "digits.fqt", folder / "digits.onnx", folder / "digits.infer.onnx", step, lowered)


def model_of_calls(lowered: LoweredModel, options: CompileOptions) -> onnx.ModelProto:
    """The training step with a node for each call, as the files for every client are made of."""
    initial = initial_state(*lowered.graphs())
    settings = {"seed": np.array(options.seed), "lr": np.array(options.optimizer.lrs(), dtype=np.float32)}
    return to_onnx(lowered.train, "calls", {**initial, **settings}, training=True)


@pytest.fixture(scope="session")
def calls(exported) -> onnx.ModelProto:
    return model_of_calls(exported.lowered, CompileOptions(seed=7))


def all_values(model: Any, feeds: dict[str, np.ndarray], plugin: Path | None = None) -> dict[str, np.ndarray]:
    """Every value with a declared type that ONNX Runtime computes, and the inputs, by name."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(model.graph.value_info)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if plugin is not None:
        settings.register_custom_ops_library(str(plugin))
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return stored | feeds | dict(zip(names, session.run(names, feeds), strict=True))


def value_names(graph: TrainingGraph) -> dict[fx.Node, str | list[str]]:
    """What ONNX calls the value of each node; a list for a node of several results."""
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    names: dict[fx.Node, str | list[str]] = dict(zip(placeholders, graph.inputs, strict=True))
    written: dict[fx.Node, str] = {}
    for label in graph.outputs:
        written.setdefault(graph.output(label), label + NEXT if label in graph.inputs else label)
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is operator.getitem:
            names[node] = names[node.args[0]][node.args[1]]
        elif isinstance(node.meta["val"], (tuple, list)):
            users = {user.args[1]: user for user in node.users}
            count = len(node.meta["val"])
            names[node] = [written.get(users.get(i), f"{label_of(node)}:{i}") for i in range(count)]
        else:
            names[node] = written.get(node, label_of(node))
    return names


def as_list(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def close(actual, wanted, what, tolerance=1e-3, floor=0.0):
    """Integers, bits and booleans equal; floats close relative to the array's norm, or to ``floor``."""
    assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype), what
    if wanted.dtype.kind != "f":
        np.testing.assert_array_equal(actual, wanted, err_msg=what)
        return
    error = float(np.linalg.norm(actual.astype(np.float64).ravel() - wanted.ravel()))
    assert error <= tolerance * max(float(np.linalg.norm(wanted.astype(np.float64))), floor), what


def every_node_agrees(graph: TrainingGraph, values) -> None:
    """Each node's reference in PyTorch on the values that ONNX Runtime computed."""
    names = value_names(graph)
    read = lambda node: torch.from_numpy(np.array(values[names[node]]))  # noqa: E731
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), read)
        expected = as_list(node.target(*args, **kwargs))
        floor = max((float(a.double().norm()) for a in args if isinstance(a, torch.Tensor)), default=0.0)
        for name, wanted in zip(as_list(names[node]), expected, strict=True):
            close(values[name], wanted.numpy(), f"{node.format_node()}", floor=floor)


def every_kernel_agrees(graph: TrainingGraph, values) -> None:
    """Each kernel's reference in PyTorch on the values that ONNX Runtime computed."""
    kernels = onnx_kernels(graph)
    for call in kernels.calls:
        group = call.group
        given = [values[operand.name] for operand in call.operands]
        env = {
            leaf: torch.from_numpy(np.array(given[position])).reshape(leaf.meta["val"].shape)
            for leaf, position in zip(group.leaves, call.positions, strict=True)
        }
        floor = max((float(value.double().norm()) for value in env.values()), default=0.0)
        for node in (*group.members, group.root):
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
        for result, wanted in zip(call.results, as_list(env[group.root]), strict=True):
            close(values[result.name], wanted.reshape(result.shape).numpy(), result.name, floor=floor)


@pytest.fixture(scope="session")
def values_of():
    return all_values


@pytest.fixture(scope="session")
def names_of():
    return value_names


@pytest.fixture(scope="session")
def assert_close():
    return close


@pytest.fixture(scope="session")
def check_every_node():
    return every_node_agrees


@pytest.fixture(scope="session")
def check_every_kernel():
    return every_kernel_agrees


@pytest.fixture(scope="session")
def calls_of():
    return model_of_calls
