"""One small model as an artifact and as ONNX files, and what every node of an ONNX file computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fqt_deploy.compiler import LoweredModel, compile_model, export_onnx, export_onnx_inference, lower_model
from fqt_deploy.core.options import CompileOptions


@dataclass(frozen=True)
class Exported:
    """The digits network in all three forms, for batches of 8.

    Attributes:
        artifact: folder of the compiled step.
        train: ONNX file of the training step.
        infer: ONNX file of the prediction.
        lowered: the graphs that all of them come from.
    """

    artifact: Path
    train: Path
    infer: Path
    lowered: LoweredModel


@pytest.fixture(scope="session")
def exported(digits_source, tmp_path_factory) -> Exported:
    folder = tmp_path_factory.mktemp("onnx")
    options = CompileOptions(seed=7)
    lowered = lower_model(digits_source, options)
    export_onnx(digits_source, options, lowered, folder / "digits.onnx")
    export_onnx_inference(digits_source, options, lowered, folder / "digits.infer.onnx")
    compile_model(digits_source, options, folder / "digits.fqt", lowered=lowered)
    return Exported(folder / "digits.fqt", folder / "digits.onnx", folder / "digits.infer.onnx", lowered)


def all_values(model: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value with a declared type that stock ONNX Runtime computes, and the inputs, by name."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(model.graph.value_info)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return stored | feeds | dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture(scope="session")
def values_of():
    return all_values
