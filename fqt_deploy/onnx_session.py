"""Train an exported ONNX file in ONNX Runtime, with the interface and the checkpoints of a compiled step.

Needs ``onnx`` and ``onnxruntime``, neither the compiler nor PyTorch. The file itself needs nothing of this:
docs/onnx.md shows the same loop in plain ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.onnx_names import MANIFEST_KEY, NEXT, step_files
from fqt_deploy.runtime.arrays import aligned_copy
from fqt_deploy.runtime.checkpoint import load_checkpoint
from fqt_deploy.runtime.files import Arrays, read_file, replace_file, state_misfit
from fqt_deploy.runtime.host_memory import HostMemory
from fqt_deploy.runtime.session import Session
from fqt_deploy.runtime.threads import configure_threads

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

Array = NDArray[Any]


class OnnxLibrary(HostMemory):
    """The two functions of a compiled step, computed by ONNX Runtime.

    Args:
        path: the training file, for messages.
        model: its content.
        manifest: the manifest from its metadata.
        infer: the inference file of the same model, if ``predict`` is wanted.
        plugin: a library of custom ops that stand in for the functions of domain ``ai.fqt``.
    """

    def __init__(
        self, path: Path, model: ModelProto, manifest: Manifest, infer: Path | None = None, plugin: Path | None = None
    ) -> None:
        self.path = path
        self.build = None
        self._manifest = manifest
        self._ort = _onnxruntime()
        self._plugin = plugin
        self._train = _session(model.SerializeToString(), path, plugin)
        self._outputs = {output.name for output in self._train.get_outputs()}
        self._infer = None if infer is None else _read_model(infer)
        self._prediction: InferenceSession | None = None

    def train_step(self, *arrays: Array, variant: int = 0) -> tuple[float, Array]:
        """Run one step on ``*batch, seed, lr, *state``; the state is changed in place.

        Args:
            *arrays: in the manifest's order.
            variant: 0: a file holds one.

        Returns:
            The loss and the logits.
        """
        names = [spec.name for spec in self._manifest.state]
        binding = self._train.io_binding()
        changed = [name for name in names if name + NEXT in self._outputs]  # frozen parameters stay as they are
        results = ["loss", "logits", *(name + NEXT for name in changed)]
        try:
            batch = [spec.name for spec in self._manifest.inputs]
            for name, array in zip((*batch, "seed", "lr", *names), arrays, strict=True):
                binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array))
            for name in results:
                binding.bind_output(name, "cpu")
            self._train.run_with_iobinding(binding)
            loss, logits, *updated = (value.numpy() for value in binding.get_outputs())
        except _failures() as error:
            raise FqtError(f"ONNX Runtime cannot run {self.path}: {_shown(error)}", code="FQT502") from None
        before = dict(zip(names, arrays[-len(names) :], strict=True))
        state = [before[name] for name in changed]
        for name, array, new in zip(changed, state, updated, strict=True):
            if (array.shape, array.dtype) != (new.shape, new.dtype):
                raise FqtError(f"{self.path} computes {new.dtype}{list(new.shape)} as {name}", code="FQT502")
        if loss.size != 1:
            raise FqtError(f"{self.path} computes {loss.size} losses", code="FQT502")
        for array, new in zip(state, updated, strict=True):
            array[...] = new
        return float(loss.item()), logits

    def prepare_prediction(self, state: Mapping[str, Array]) -> None:
        """Let ``predict`` use these values, also in place of the constants of an inference file that has them."""
        if self._infer is None:
            raise FqtError(
                f"{self.path} is a training step only", code="FQT501", hint="load it with the file of --emit onnx-infer"
            )
        if self._prediction is not None and self._takes_state:
            return
        _set_initializers(self._infer, {name: state[name] for name in self._manifest.predict_state})
        self._prediction = _session(self._infer.SerializeToString(), self.path, self._plugin)

    def predict(self, *arrays: Array, variant: int = 0) -> Array:
        """Logits of the model's inputs, which come first; the state comes next, or was prepared."""
        assert variant == 0
        assert self._prediction is not None
        inputs = [spec.name for spec in self._manifest.model_inputs]
        names = [*inputs, *self._manifest.predict_state] if self._takes_state else inputs
        try:
            logits: Array = self._prediction.run(["logits"], dict(zip(names, arrays, strict=False)))[0]
        except _failures() as error:
            raise FqtError(f"ONNX Runtime cannot predict with {self.path}: {_shown(error)}", code="FQT502") from None
        return logits

    @property
    def _takes_state(self) -> bool:
        """Whether the prediction takes the state as inputs."""
        return self._infer is not None and len(self._infer.graph.input) > len(self._manifest.model_inputs)


class OnnxSession(Session):
    """A session on an ONNX file; ``save`` writes an ONNX file too."""

    def __init__(self, manifest: Manifest, library: OnnxLibrary, state: Arrays, model: ModelProto) -> None:
        super().__init__(manifest, library, state)
        self._onnx = library
        self._model = model

    def predict(self, *inputs: Any, **named: Any) -> Array:
        """The logits, as from ``Session.predict``; needs the inference file.

        Raises:
            FqtError: also FQT501 without it.
        """
        with self._turn:
            self._onnx.prepare_prediction({name: self._evaluated(name) for name in self.manifest.predict_state})
            return super().predict(*inputs, **named)

    def save(self, path: Path | str) -> None:
        """Write the model with the state, seed and learning rates of now as its initial values.

        Those of ``--emit onnx-step`` go into ``NAME.state.safetensors`` beside it, which ``load_onnx`` finds there.
        """
        path = Path(path)
        if not _has_defaults(self._model):
            replace_file(path, self._model.SerializeToString())
            self.save_checkpoint(step_files(path).state)
            return
        model = type(self._model)()
        model.CopyFrom(self._model)
        _set_initializers(model, {**self._state, "seed": self._seed, "lr": self._lr})
        replace_file(path, model.SerializeToString())


def load_onnx(path: Path | str, *, infer: Path | str | None = None, plugin: Path | str | None = None) -> OnnxSession:
    """Load a file of ``fqt-compile --emit onnx`` or ``onnx-step``, ready to train.

    Args:
        path: the training file. One of ``--emit onnx-step`` starts from ``NAME.state.safetensors`` beside it.
        infer: the file of ``--emit onnx-infer``, or ``NAME.predict.onnx`` of ``onnx-step``, for ``predict``.
        plugin: a custom-op library, see docs/onnx.md.

    Raises:
        FqtError: FQT501 if it is not such a file, FQT502 if it is damaged, FQT509 if ONNX Runtime is missing.
    """
    path = Path(path)
    model = _read_model(path)
    manifest = _manifest(model, path)
    if not _has_defaults(model):
        if plugin is not None:
            hint = "the plug-in is for the file of --emit onnx"
            raise FqtError(f"{path} has no functions that a plug-in could compute", code="FQT501", hint=hint)
        return _from_checkpoint(path, model, manifest, infer)
    stored = _initializers(model, path)
    state = {spec.name: aligned_copy(stored[spec.name]) for spec in manifest.state if spec.name in stored}
    if misfit := state_misfit(manifest.state, state):
        raise FqtError(f"{path}: {misfit}", code="FQT502")
    library = OnnxLibrary(
        path, model, manifest, None if infer is None else Path(infer), None if plugin is None else Path(plugin)
    )
    session = OnnxSession(manifest, library, state, model)
    for name in ("seed", "lr"):
        if name not in stored:
            raise FqtError(f"{path} has no {name}", code="FQT502")
    try:
        session.seed, session.lr = stored["seed"].item(), stored["lr"].tolist()
    except (FqtError, ValueError) as error:
        raise FqtError(f"{path} is damaged: {error}", code="FQT502") from None
    return session


def _from_checkpoint(path: Path, model: ModelProto, manifest: Manifest, infer: Path | str | None) -> OnnxSession:
    """A session on a file without an initial state, which a checkpoint beside it holds."""
    library = OnnxLibrary(path, model, manifest, None if infer is None else Path(infer))
    state, _ = load_checkpoint(step_files(path).state, manifest)
    session = OnnxSession(manifest, library, state, model)
    session.load_checkpoint(step_files(path).state)
    return session


def _has_defaults(model: ModelProto) -> bool:
    """Whether the inputs of the step have initial values in the file."""
    return not {value.name for value in model.graph.input}.isdisjoint(t.name for t in model.graph.initializer)


def _manifest(model: ModelProto, path: Path) -> Manifest:
    text = next((entry.value for entry in model.metadata_props if entry.key == MANIFEST_KEY), None)
    if text is None or model.graph.name != "train_step":
        raise FqtError(
            f"{path} is not an exported training step", code="FQT501", hint="make one with fqt-compile --emit onnx"
        )
    return Manifest.from_json(text)


def _read_model(path: Path) -> ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise FqtError(f"{error.name} is missing", code="FQT509", hint="pip install onnx onnxruntime") from None
    try:
        model = onnx.ModelProto()
        model.ParseFromString(read_file(path))  # never the arrays of other files that it may name
        return model
    except (DecodeError, ValueError):
        raise FqtError(f"{path} is damaged, or not an ONNX file", code="FQT502") from None


def _initializers(model: ModelProto, path: Path) -> Arrays:
    from onnx import numpy_helper

    try:
        return {tensor.name: np.array(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    except (ValueError, TypeError, KeyError, OSError, OverflowError, MemoryError) as error:
        raise FqtError(f"{path} is damaged: {_shown(error)}", code="FQT502") from None


def _set_initializers(model: ModelProto, values: Mapping[str, Array]) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


def _session(content: bytes, path: Path, plugin: Path | None) -> InferenceSession:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = configure_threads()
    options.log_severity_level = 3  # it warns of every input whose default nothing reads
    try:
        if plugin is not None:
            # Threads that wait by spinning would take the kernels' cores.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.register_custom_ops_library(str(plugin))
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except _failures() as error:
        raise FqtError(f"ONNX Runtime cannot load {path}: {_shown(error)}", code="FQT502") from None


def _shown(error: Exception) -> str:
    """The message of ``error`` in characters that can be printed: it repeats names from the file."""
    return str(error).encode(errors="backslashreplace").decode()


def _failures() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "ModelLoaded",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    # Its own messages are not always text, and it fails in its Python part too.
    others = (RuntimeError, ValueError, TypeError, AttributeError, KeyError)
    return (*(getattr(state, name) for name in names if hasattr(state, name)), *others)


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError:
        raise FqtError("onnxruntime is missing", code="FQT509", hint="pip install onnxruntime") from None
    module: ModuleType = onnxruntime
    return module
