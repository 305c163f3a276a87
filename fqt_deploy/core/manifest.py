"""The manifest of an artifact: what the compiled step takes, keeps and contains; ``manifest.json``."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest_laws import broken_law

SCHEMA_VERSION = 5
"""Version of the manifest's fields; raised when an older runtime could not run a newer artifact."""
OLDEST_SCHEMA = 2
"""The oldest version that is still read: what it lacks has defaults."""
_FIRST_WITH_ROLES = 4
"""The first version in which an input has a name of its own, a role and a range."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of one array.

    Attributes:
        name: the name, as the step's signature names it.
        shape: extents, in elements.
        dtype: NumPy's name of the element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements of the array."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class IndexRange:
    """The integers that a step indexes by.

    Attributes:
        low: the least.
        high: one more than the largest.
        ignore_index: one more integer, which the loss leaves out; None if there is none.
    """

    low: int
    high: int
    ignore_index: int | None = None


@dataclass(frozen=True)
class InputSpec(TensorSpec):
    """One array of a batch, samples along its first axis.

    Attributes:
        role: ``input`` of the model, or ``target`` of the loss, which a prediction does without.
        values: the integers that it may hold: labels that the loss indexes by, or indices into a table; None if any.
        columns: for each place along the last axis, the integers that it may hold, where they differ: columns that are
            looked up in tables of their own. Otherwise empty.
    """

    role: str
    values: IndexRange | None = None
    columns: tuple[IndexRange, ...] = ()


@dataclass(frozen=True)
class StateSpec(TensorSpec):
    """One array that lives across steps.

    Attributes:
        role: ``param``, ``buffer``, ``optimizer``, ``counter`` or ``metric``.
    """

    role: str


@dataclass(frozen=True)
class Bucket:
    """One of several shapes of batches that the library has functions for, all on the same state.

    Attributes:
        shapes: the shapes of the inputs, in their order.
        logits: the shape of what ``predict`` returns.
        state: names of the state that ``train_step`` takes, in argument order.
        predict_state: names of the state that ``predict`` takes, in order.
    """

    shapes: tuple[tuple[int, ...], ...]
    logits: tuple[int, ...]
    state: tuple[str, ...]
    predict_state: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """The step for one shape of batches.

    Attributes:
        number: its place among the variants; 0 for the shape that the manifest's own fields describe.
        inputs: as in the manifest, with this variant's shapes.
        logits: what ``predict`` returns.
        state: names of the state that ``train_step`` takes, in argument order.
        predict_state: names of the state that ``predict`` takes, in order.
    """

    number: int
    inputs: tuple[InputSpec, ...]
    logits: TensorSpec
    state: tuple[str, ...]
    predict_state: tuple[str, ...]

    @property
    def batch(self) -> int:
        """Number of samples in one step."""
        return self.inputs[0].shape[0]

    @property
    def model_inputs(self) -> tuple[InputSpec, ...]:
        """The arrays that the model takes."""
        return tuple(spec for spec in self.inputs if spec.role == "input")


PROCESS_SHARE = "process_share"
"""The runtime's function that a distributed step calls with a number, to be replaced by 1 / number of processes."""
EXCHANGE_START, EXCHANGE_FINISH = "exchange_start", "exchange_finish"
"""The runtime's functions that a distributed step calls with this process's share of a gradient and its number, as soon
as it is computed, and with the number again before the first read, by when it must be the sum over all processes. Where
a selection leaves out channels, the numbers of the only rows that are not zero follow. Names that begin as kernels' do
would be timed as such."""
EXCHANGE_STATISTICS = "exchange_statistics"
"""The runtime's function that a step with synchronized batch normalization calls with a number of rows, how many sums
over them follow, these, and moments of the rows, to be replaced at once by those of all processes."""


def function_name(function: str, number: int) -> str:
    """The name in the library of ``train_step`` or ``predict`` of variant ``number``."""
    return f"{function}_{number}" if number else function


@dataclass(frozen=True, slots=True)  # there are thousands
class KernelInfo:
    """One kernel call of the step.

    Attributes:
        symbol: function name in the library.
        op: what it computes.
        layer: module path, or "".
        phase: ``forward``, ``input_grad``, ``weight_grad``, ``backward`` or ``optimizer``.
        flops: floating point operations.
        bit_ops: single-bit multiply-accumulates times two.
        bytes_moved: operands and results, each once.
        source: line of the user's model, when known.
    """

    symbol: str
    op: str
    layer: str
    phase: str
    flops: int = 0
    bit_ops: int = 0
    bytes_moved: int = 0
    source: str | None = None


@dataclass(frozen=True)
class LayerDecision:
    """The decisions of the compiler about one convolution or linear layer.

    Attributes:
        path: module path.
        kind: ``conv2d`` or ``linear``.
        decision: ``1-bit`` or ``fp32``.
        reason: one short sentence.
        source: line of the user's model, when known.
        activation_bits: bits of an activation, where it is binarized.
        weight_bits: bits of a weight, likewise.
    """

    path: str
    kind: str
    decision: str
    reason: str
    source: str | None = None
    activation_bits: int = 1
    weight_bits: int = 1


@dataclass(frozen=True)
class OptimizerInfo:
    """The compiled optimizer.

    Attributes:
        name: as ``--optimizer`` takes it.
        hyperparameters: what is fixed in the compiled step.
        groups: ``{"pattern": globs, "lr": initial rate}``, and hyperparameters that the group has of its own; the first
            is the default, the others in order of match.
    """

    name: str
    hyperparameters: dict[str, Any]
    groups: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Manifest:
    """Everything about an artifact that is not code or numbers.

    Attributes:
        schema_version: version of this file's fields.
        name: the name of the model.
        target: what the code was generated for: ``name``, ``arch`` (as ``uname -m`` says it), ``mcpu`` and ``requires``
            (extensions of the processor, as /proc/cpuinfo names them, separated by spaces); ``fp32_products`` is
            ``tf32`` if a GPU rounds their operands to that, ``ptx`` is ``none`` if later GPUs cannot run it.
        versions: versions of the packages that compiled it.
        inputs: the arrays of one batch, inputs of the model before targets, in argument order of ``train_step``.
        logits: what ``predict`` returns.
        classes: number of classes, when the labels are class indices; else None.
        class_axis: axis of the logits that the classes lie along; None: the last.
        state: the state in argument order of ``train_step``.
        predict_state: names of the state that ``predict`` takes, in order.
        module_names: names in the module's state dict -> names of the state; tied parameters have several names.
        layers: the decisions, in forward order.
        kernels: the kernel calls of ``train_step`` in execution order.
        options: the options that change numbers.
        optimizer: the compiled update.
        seed: initial seed of the random streams.
        fingerprint: identifies model, options and optimizer; a checkpoint carries it.
        prediction: the name, among what the model returns, of what ``predict`` returns.
        buckets: every shape of batches where there are several, that of ``inputs`` first; else empty.
    """

    name: str
    target: dict[str, str]
    versions: dict[str, str]
    inputs: tuple[InputSpec, ...]
    logits: TensorSpec
    classes: int | None
    state: tuple[StateSpec, ...]
    predict_state: tuple[str, ...]
    module_names: dict[str, str]
    layers: tuple[LayerDecision, ...]
    kernels: tuple[KernelInfo, ...]
    options: dict[str, Any]
    optimizer: OptimizerInfo
    seed: int
    fingerprint: str
    schema_version: int = field(default=SCHEMA_VERSION)
    class_axis: int | None = None
    prediction: str = "logits"
    buckets: tuple[Bucket, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The step for each shape of batches, at least one."""
        names = tuple(spec.name for spec in self.state)
        if not self.buckets:
            return (Variant(0, self.inputs, self.logits, names, self.predict_state),)
        return tuple(
            Variant(
                number,
                tuple(replace(spec, shape=shape) for spec, shape in zip(self.inputs, bucket.shapes, strict=True)),
                replace(self.logits, shape=bucket.logits),
                bucket.state,
                bucket.predict_state,
            )
            for number, bucket in enumerate(self.buckets)
        )

    @property
    def model_inputs(self) -> tuple[InputSpec, ...]:
        """The arrays that the model takes."""
        return tuple(spec for spec in self.inputs if spec.role == "input")

    @property
    def targets(self) -> tuple[InputSpec, ...]:
        """The arrays that the loss takes besides what the model returns."""
        return tuple(spec for spec in self.inputs if spec.role == "target")

    @property
    def labels(self) -> InputSpec | None:
        """The first target whose values the loss indexes by; None if there is none."""
        return next((spec for spec in self.targets if spec.values is not None), None)

    @property
    def batch(self) -> int:
        """Number of samples in one step."""
        return self.inputs[0].shape[0]

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read and check the text of ``manifest.json``.

        Raises:
            FqtError: FQT502 for malformed text, FQT503 for another schema version.
        """
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be shown
        except (ValueError, RecursionError) as error:
            raise FqtError(f"manifest.json is not valid JSON: {error}", code="FQT502") from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise FqtError("manifest.json is not a manifest: it has no schema_version", code="FQT502")
        if not OLDEST_SCHEMA <= version <= SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            raise FqtError(
                f"the artifact has schema version {version}, this runtime reads {OLDEST_SCHEMA} to {SCHEMA_VERSION}",
                code="FQT503",
                hint="install a newer fqt-deploy" if newer else "compile the model again with the installed version",
            )
        built = _build(cls, data if version >= _FIRST_WITH_ROLES else _upgraded(data), "manifest")
        assert isinstance(built, Manifest)
        if said := broken_law(built):
            raise FqtError(f"manifest.json contradicts itself: {said}", code="FQT502")
        return replace(built, schema_version=SCHEMA_VERSION)


def _upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of now for a manifest that knows ``x``, ``y`` and the range of ``y`` beside them, and signs alone."""
    fields_of_now = {name: value for name, value in data.items() if name not in ("label_range", "ignore_index")}
    classes = data.get("classes")
    bounds = data.get("label_range") or ([0, classes] if classes is not None else None)
    if bounds is not None and not (isinstance(bounds, list) and len(bounds) == 2):
        raise FqtError(f"manifest.json contradicts itself: label_range is {str(bounds)[:40]}", code="FQT502")
    values = None if bounds is None else {"low": bounds[0], "high": bounds[1], "ignore_index": data.get("ignore_index")}
    inputs = data.get("inputs")
    if isinstance(inputs, list) and all(isinstance(spec, dict) for spec in inputs):
        own: list[dict[str, Any]] = [{"role": "input", "values": None}, {"role": "target", "values": values}]
        fields_of_now["inputs"] = [{**spec, **own[min(i, 1)]} for i, spec in enumerate(inputs)]
    layers = data.get("layers")
    if isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers):
        fields_of_now["layers"] = [{"activation_bits": 1, **layer} for layer in layers]
    return fields_of_now


def _build(expected: Any, data: Any, where: str) -> Any:
    """The value of type ``expected`` from JSON's ``data``; FQT502 naming the place where it does not fit."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return data
    if origin in (Union, UnionType):
        if data is None and NoneType in arguments:
            return None
        return _build(next(a for a in arguments if a is not NoneType), data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _misfit(where, "a list", data)
        return tuple(_build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin is dict or expected is dict:
        if not isinstance(data, dict):
            raise _misfit(where, "an object", data)
        return {key: _build(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if isinstance(expected, type) and hasattr(expected, "__dataclass_fields__"):
        return _build_dataclass(expected, data, where)
    if not isinstance(data, expected) or (expected is int and isinstance(data, bool)):
        raise _misfit(where, expected.__name__, data)
    return sys.intern(data) if type(data) is str else data  # layers and source lines repeat in every kernel


def _build_dataclass(expected: type, data: Any, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise _misfit(where, "an object", data)
    hints = get_type_hints(expected)
    # What has been added since the first version has a default, which holds where it lacks.
    grown = {
        Manifest: {f.name for f in fields(expected) if f.default is not MISSING},
        InputSpec: {"columns"},
        LayerDecision: {"weight_bits"},
    }
    optional = grown.get(expected, set())
    if difference := (set(data) ^ set(hints)) - (optional - set(data)):
        raise FqtError(
            f"{where} of manifest.json has missing or unknown fields: {', '.join(sorted(difference))}", code="FQT502"
        )
    return expected(**{name: _build(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _misfit(where: str, expected: str, data: Any) -> FqtError:
    return FqtError(f"{where} of manifest.json must be {expected}, not {type(data).__name__}", code="FQT502")
