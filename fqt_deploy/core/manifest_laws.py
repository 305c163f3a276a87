"""The laws of every manifest beyond the types of its fields: a runtime indexes memory by its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fqt_deploy.core.manifest import Manifest, TensorSpec

ITEM_SIZES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
    "float32": 4, "float64": 8,
}  # fmt: skip
"""Number of bytes of one element, by NumPy's name of the type; the C interface knows the same."""
LARGEST_ARRAY = 2**46
"""Upper bound of an array's bytes; no address lies farther, so that sizes never overflow."""
LARGEST_RATE = 3.4028234663852886e38
"""The largest number of float32, in which a step takes its learning rates."""
RESERVED_NAMES = ("seed", "lr", "step", "loss", "logits")
"""Names of what a step takes and returns besides a batch and its state."""
_INT64 = range(-(2**63), 2**63)


def broken_law(manifest: Manifest) -> str | None:
    """The first law that ``manifest`` breaks, as a sentence; None if it breaks none."""
    return next((said for law in _LAWS for said in law(manifest)), None)


def _arrays_are_possible(manifest: Manifest) -> Iterator[str]:
    for spec in (*manifest.inputs, manifest.logits, *manifest.state):
        if spec.dtype not in ITEM_SIZES:
            yield f"{spec.name} has the unknown type {spec.dtype!r}"
        elif any(extent < 0 for extent in spec.shape) or not _fits(spec):
            yield f"{spec.name} has the impossible shape {list(spec.shape)}"


def _fits(spec: TensorSpec) -> bool:
    # An extent of zero hides no impossible one.
    return math.prod(max(extent, 1) for extent in spec.shape) * ITEM_SIZES[spec.dtype] < LARGEST_ARRAY


def _inputs_have_a_batch(manifest: Manifest) -> Iterator[str]:
    names = [spec.name for spec in manifest.inputs]
    if len(set(names)) != len(names):
        yield f"two inputs have one name: {', '.join(names)}"
    if wrong := [name for name in names if name in RESERVED_NAMES or not name or "/" in name or ":" in name]:
        yield f"an input is called {wrong[0]!r}"
    roles = [spec.role for spec in manifest.inputs]
    if roles != sorted(roles) or not roles or roles[0] != "input" or not set(roles) <= {"input", "target"}:
        yield "the inputs are not inputs of the model followed by targets"
        return
    first = manifest.inputs[0]
    batch = first.shape[0] if first.shape else 0
    for spec in manifest.inputs:
        if not spec.shape or spec.shape[0] != batch or (spec.role == "input" and 0 in spec.shape):
            yield f"{first.name} {list(first.shape)} and {spec.name} {list(spec.shape)} are not of one batch"
            return
    if not manifest.logits.shape or 0 in manifest.logits.shape or manifest.logits.shape[0] % batch:
        yield f"logits {list(manifest.logits.shape)} are not of a batch of {batch}"


def _indices_are_integers(manifest: Manifest) -> Iterator[str]:
    for spec in manifest.inputs:
        if (values := spec.values) is None:
            continue
        if not spec.dtype.startswith(("int", "uint")):
            yield f"{spec.name} is of type {spec.dtype}, and has a range of integers"
        for own in (values, *spec.columns):
            if own.low >= own.high or any(bound not in _INT64 for bound in (own.low, own.high)):
                yield f"{spec.name} goes from {own.low} to before {own.high}"
        if spec.columns and len(spec.columns) != spec.shape[-1]:
            yield f"{spec.name} {list(spec.shape)} has ranges for {len(spec.columns)} columns"
        if values.ignore_index is not None and values.ignore_index not in _INT64:
            yield f"ignore_index is {values.ignore_index}"


def _labels_index_the_logits(manifest: Manifest) -> Iterator[str]:
    shape = manifest.logits.shape
    axis = -1 if manifest.class_axis is None else manifest.class_axis
    if not -len(shape) <= axis < len(shape):
        yield f"class_axis is {axis} with logits {list(shape)}"
    elif manifest.classes is not None and manifest.classes != shape[axis]:
        yield f"there are {manifest.classes} classes and logits {list(shape)}"
    if manifest.classes is not None and manifest.labels is None:
        yield f"there are {manifest.classes} classes and no labels"


def _names_are_of_the_state(manifest: Manifest) -> Iterator[str]:
    names = {spec.name for spec in manifest.state}
    if len(names) != len(manifest.state):
        yield "two arrays of the state have one name"
    for name in (*manifest.predict_state, *manifest.module_names.values()):
        if name not in names:
            yield f"the state has no {name}"
    if not any(
        spec.name == "step" and spec.shape == () and spec.dtype in ("int32", "int64") for spec in manifest.state
    ):
        yield "the state has no step count"


def _buckets_are_of_the_same_step(manifest: Manifest) -> Iterator[str]:
    names = {spec.name for spec in manifest.state}
    if manifest.buckets and tuple(spec.shape for spec in manifest.inputs) != manifest.buckets[0].shapes:
        yield "the first bucket is not that of the inputs"
    for number, bucket in enumerate(manifest.buckets):
        if len(bucket.shapes) != len(manifest.inputs) or len(bucket.logits) != len(manifest.logits.shape):
            yield f"bucket {number} has {len(bucket.shapes)} inputs"
            return
        specs: list[TensorSpec] = [
            replace(spec, shape=shape) for spec, shape in zip(manifest.inputs, bucket.shapes, strict=True)
        ]
        specs.append(replace(manifest.logits, shape=bucket.logits))
        ranks = [len(spec.shape) for spec in (*manifest.inputs, manifest.logits)]
        possible = all(spec.shape and min(spec.shape) > 0 and _fits(spec) for spec in specs)
        if not possible or ranks != [len(spec.shape) for spec in specs]:
            yield f"bucket {number} has an impossible shape"
        elif any(shape[0] != bucket.shapes[0][0] for shape in bucket.shapes) or bucket.logits[0] % bucket.shapes[0][0]:
            yield f"bucket {number} is not of one batch"
        if unknown := [name for name in (*bucket.state, *bucket.predict_state) if name not in names]:
            yield f"the state has no {unknown[0]}"
    if len({bucket.shapes for bucket in manifest.buckets}) < len(manifest.buckets):
        yield "two buckets have the same shapes"


def _numbers_are_possible(manifest: Manifest) -> Iterator[str]:
    if manifest.seed not in _INT64:
        yield f"the seed {manifest.seed} does not fit into 64 bits"
    if not manifest.optimizer.groups:
        yield "there is no learning rate"
    for group in manifest.optimizer.groups:
        rate = group.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= LARGEST_RATE:
            yield f"a learning rate is {str(rate)[:40]}"


def _the_target_is_named(manifest: Manifest) -> Iterator[str]:
    required = ("name", "mcpu") if manifest.target.get("name") == "cuda" else ("name",)
    if missing := [key for key in required if key not in manifest.target]:
        yield f"the target has no {missing[0]}"


_LAWS: tuple[Callable[[Manifest], Iterator[str]], ...] = (
    _arrays_are_possible, _inputs_have_a_batch, _indices_are_integers, _labels_index_the_logits,
    _names_are_of_the_state, _buckets_are_of_the_same_step, _numbers_are_possible, _the_target_is_named,
)  # fmt: skip
