"""An ONNX prediction for batches of any size, from two exports of one model that differ in the batch alone.

What differs between the two is what depends on the batch: extents in the declared shapes, and the target of a
``Reshape``, where -1 takes its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper

from fqt_deploy.core.diagnostics import FqtError

BATCH = "batch"
"""The name of the extent that is left open."""


def with_any_batch(model: ModelProto, other: ModelProto, batch: int, other_batch: int) -> ModelProto:
    """``model`` for batches of any size.

    Args:
        model: exported for ``batch`` samples.
        other: the same for ``other_batch`` samples.
        batch: number of samples of ``model``.
        other_batch: number of samples of ``other``.

    Raises:
        FqtError: FQT203 where something else than a reshape depends on the batch.
    """
    result = ModelProto()
    result.CopyFrom(model)
    ours, theirs = _constants(model), _constants(other)
    if len(model.graph.node) != len(other.graph.node):
        raise _refused(f"it has {len(model.graph.node)} nodes or {len(other.graph.node)}")
    added: dict[bytes, TensorProto] = {}
    for node, twin in zip(result.graph.node, other.graph.node, strict=True):
        if (node.op_type, _attributes(node)) != (twin.op_type, _attributes(twin)):
            raise _refused(f"{node.name} is another call", node)
        for position, (name, twin_name) in enumerate(zip(node.input, twin.input, strict=True)):
            if name not in ours or twin_name not in theirs:
                if name != twin_name:
                    raise _refused(f"{node.name} reads another value", node)
            elif not _equal(ours[name], theirs[twin_name]):
                open_shape = _open(node, position, ours[name], theirs[twin_name])
                tensor = added.setdefault(
                    open_shape.tobytes(), numpy_helper.from_array(open_shape, f"any_batch/{len(added)}")
                )
                node.input[position] = tensor.name
    result.graph.initializer.extend(added.values())
    used = {name for node in result.graph.node for name in node.input}
    for tensor in [t for t in result.graph.initializer if t.name not in used]:
        result.graph.initializer.remove(tensor)
    for info, twin_info in _declared(result, other):
        _open_extents(info, twin_info, batch, other_batch)
    result.graph.doc_string = result.graph.doc_string.replace(f"for {batch} samples", "for any number of samples")
    return result


def _constants(model: ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _attributes(node: NodeProto) -> list[bytes]:
    return sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)


def _equal(one: NDArray[np.generic], other: NDArray[np.generic]) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()


def _open(node: NodeProto, position: int, one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.generic]:
    """The target of a ``Reshape`` with -1 for the extent that depends on the batch."""
    if node.op_type != "Reshape" or position != 1 or one.shape != other.shape or (one != other).sum() != 1:
        raise _refused(f"{node.name} ({node.op_type}) depends on the batch", node)
    return np.where(one != other, -1, one).astype(np.int64)


def _declared(model: ModelProto, other: ModelProto) -> Iterator[tuple[ValueInfoProto, ValueInfoProto]]:
    """The declared types of both models, in pairs."""
    for field in ("input", "output", "value_info"):
        ours, theirs = getattr(model.graph, field), getattr(other.graph, field)
        if [info.name for info in ours] != [info.name for info in theirs]:
            raise _refused("its values have other names")
        yield from zip(ours, theirs, strict=True)


def _open_extents(info: ValueInfoProto, twin: ValueInfoProto, batch: int, other_batch: int) -> None:
    dims, twin_dims = info.type.tensor_type.shape.dim, twin.type.tensor_type.shape.dim
    for dim, twin_dim in zip(dims, twin_dims, strict=True):
        if dim.dim_value != twin_dim.dim_value:
            rows = dim.dim_value // batch
            if rows * batch != dim.dim_value or rows * other_batch != twin_dim.dim_value:
                raise _refused(f"an extent of {info.name} is no multiple of the batch")
            dim.dim_param = BATCH if rows == 1 else f"{BATCH}*{rows}"


def _refused(what: str, node: NodeProto | None = None) -> FqtError:
    layer = (
        next((entry.value for entry in node.metadata_props if entry.key == "source"), "") if node is not None else ""
    )
    return FqtError(
        f"the prediction cannot be written for batches of any size: {what}" + (f" ({layer})" if layer else ""),
        code="FQT203",
        hint="fqt-compile --emit onnx-infer --weights CHECKPOINT writes it for one batch size",
    )
