"""Write a lowered model as ONNX files: the training step, and the prediction alone.

Each in two forms: for Python, with functions and with the initial state inside, or for every client, flat and with the
state as inputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from fqt_deploy.capture.capture_model import user_code
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import LoweredModel, initial_state, lower_model
from fqt_deploy.compiler.describe import describe_model
from fqt_deploy.compiler.onnx_kernels import onnx_kernels
from fqt_deploy.core.diagnostics import FqtError, InvariantError
from fqt_deploy.core.graph import ActivationGrid, TrainingGraph, grids_of
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.onnx_names import MANIFEST_KEY, step_files
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.export.dynamic_batch import with_any_batch
from fqt_deploy.export.flat_model import flatten
from fqt_deploy.export.fold_constants import with_folded_constants
from fqt_deploy.export.onnx_model import to_onnx, to_onnx_kernels
from fqt_deploy.runtime.checkpoint import save_checkpoint
from fqt_deploy.runtime.files import replace_file

_LARGEST = 2**31 - 1
"""Number of bytes that protobuf can put into one file."""


def export_onnx(source: ModelSource, options: CompileOptions, lowered: LoweredModel, output: Path) -> None:
    """Write the training step to ``output``, whole or not at all.

    Raises:
        FqtError: FQT203 for an op that ONNX Runtime could not compute exactly, FQT508 if the file cannot be written.
    """
    initial = {
        **initial_state(*lowered.graphs()),
        "seed": np.array(options.seed, dtype=np.int64),
        "lr": np.array(options.optimizer.lrs(), dtype=np.float32),
    }
    with user_code(source):
        model = to_onnx_kernels(lowered.train, source.name, initial, onnx_kernels(lowered.train), training=True)
    _write(model, _manifest(source, options, lowered), options, output)


def export_onnx_inference(source: ModelSource, options: CompileOptions, lowered: LoweredModel, output: Path) -> None:
    """Write the prediction to ``output``, whole or not at all; weights and statistics are constants in it.

    Raises:
        FqtError: as ``export_onnx``.
    """
    graph = lowered.predict
    with user_code(source):
        model = to_onnx_kernels(graph, source.name, _read_state(lowered), onnx_kernels(graph), training=False)
    _write(model, _manifest(source, options, lowered), options, output)


def export_onnx_any_batch(
    source: ModelSource, options: CompileOptions, output: Path, grids: Mapping[str, ActivationGrid] | None = None
) -> None:
    """Write the prediction for batches of any size to ``output``, whole or not at all; 1-bit weights are packed in it.

    Args:
        source: the model.
        options: how it is lowered.
        output: the file.
        grids: of activations, by the name of their layer's weight; by default the example batch says.

    Raises:
        FqtError: as ``export_onnx``; also FQT203 where something depends on the batch that ONNX has fixed.
    """
    batch = source.call.batch
    source, more = source.resized(batch), source.resized(batch + 1)
    lowered = lower_model(source, options, grids=grids)
    larger = _prediction(more, lower_model(more, options, grids=grids_of(lowered.train.layers)))
    model = with_any_batch(_prediction(source, lowered), larger, batch, batch + 1)
    _write(with_folded_constants(model), _manifest(source, options, lowered), options, output)


def _prediction(source: ModelSource, lowered: LoweredModel) -> ModelProto:
    return _model(source, lowered.predict, _read_state(lowered), training=False)


def _read_state(lowered: LoweredModel) -> dict[str, NDArray[Any]]:
    """The initial state that the prediction reads, by name."""
    state = initial_state(*lowered.graphs())
    return {name: array for name, array in state.items() if name in lowered.predict.inputs}


def export_onnx_step(source: ModelSource, options: CompileOptions, lowered: LoweredModel, output: Path) -> None:
    """Write step and prediction for every ONNX Runtime, and the initial state as a checkpoint.

    Args:
        source: the model.
        options: how it was lowered.
        lowered: its graphs.
        output: the file of the step; prediction and state lie beside it, see ``step_files``.

    Raises:
        FqtError: as ``export_onnx``; FQT506 if the initial state holds NaN.
    """
    files, manifest = step_files(output), _manifest(source, options, lowered)
    step = flatten(_model(source, lowered.train, {}, training=True))
    prediction = flatten(_model(source, lowered.predict, {}, training=False))
    _write(step, manifest, options, files.step)
    _write(prediction, manifest, options, files.prediction)
    settings = {"seed": str(options.seed), "lr": json.dumps(list(options.optimizer.lrs()))}
    save_checkpoint(files.state, manifest, initial_state(*lowered.graphs()), settings)


def _model(
    source: ModelSource, graph: TrainingGraph, initial: Mapping[str, NDArray[Any]], *, training: bool
) -> ModelProto:
    with user_code(source):
        return to_onnx(graph, source.name, initial, training=training)


def _manifest(source: ModelSource, options: CompileOptions, lowered: LoweredModel) -> Manifest:
    if source.others:
        raise FqtError("an ONNX file holds a step for one shape of batches", code="FQT202", hint="choose one --batch")
    return describe_model(source, options, lowered.train, lowered.predict, target={"name": "onnx"})


def _write(model: ModelProto, manifest: Manifest, options: CompileOptions, output: Path) -> None:
    onnx.helper.set_model_props(model, {MANIFEST_KEY: manifest.to_json()})
    size = model.ByteSize()
    if size > _LARGEST:
        raise FqtError(
            f"{output} would have {size} bytes; an ONNX file holds at most {_LARGEST}",
            code="FQT508",
            hint="--optimizer sgd keeps less state; the artifact (--emit so) has no such limit",
        )
    if options.verify != "off":
        check(model)
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FqtError(f"cannot write {output}: {error.strerror}", code="FQT508") from None
    replace_file(output, model.SerializeToString())


def check(model: ModelProto) -> None:
    """Raise ``InvariantError`` unless ``model`` is valid ONNX and its declared types agree with inferred ones."""
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvariantError(f"the exported graph is not valid ONNX: {error}") from None
