"""Rounding noise of a value: what it changes by if all numbers on the way to it change in their last digits.

A sum whose terms cancel is rounding noise, of a size that only its terms know. It is measured: the computation is
repeated with every operand and every value on the way multiplied by one plus or minus a few units of the last place.

A code of a number that the same kernel computes, such as a GELU, may be the next one where the number lies at the edge
between two: kernel and PyTorch have other formulas for an exponential. Which codes these are is measured, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

_UNIT = 2.0**-22
"""Relative change of a number: two units in the last place of float32."""
_RUNS = 3
_RUNS_OF_ELEMENTS = 32
"""More of them: of values that are equal but for rounding each is the largest one in a part of the runs."""
_AT_EDGE = 2.0**-20
"""Relative distance of a computed number from an edge within which its code may be either: eight units in the last
place."""
SLACK = 32.0
"""Upper bound of an error in units of the noise: a long sum in another order, or another formula, rounds more often."""


def rounding_noise(root: fx.Node, known: Mapping[fx.Node, Any]) -> list[float]:
    """The norm of what rounding changes in each floating point result of ``root``; 0 for others.

    Args:
        root: the node; what it depends on and is not ``known`` is computed again.
        known: values of the nodes that it starts from.
    """
    given = {node: value for node, value in known.items() if node is not root}
    expected = _tensors(_evaluate(root, given, None))
    noise = [0.0] * len(expected)
    for run in range(_RUNS):
        changed = _tensors(_evaluate(root, given, torch.Generator().manual_seed(run)))
        for i, (a, b) in enumerate(zip(changed, expected, strict=True)):
            if b.dtype.is_floating_point:
                difference = (a.double() - b.double()).nan_to_num(0.0, 0.0, 0.0)
                noise[i] = max(noise[i], float(difference.norm()))
    return noise


def unsure_elements(root: fx.Node, known: Mapping[fx.Node, Any]) -> list[Tensor]:
    """Which elements of each result of ``root`` are not always the same if all numbers are rounded otherwise.

    Values that are equal but for rounding, such as sums of as many signs, make the place of their maximum unsure, and
    the sign of what is zero but for rounding.

    Args:
        root: the node; what it depends on and is not ``known`` is computed again.
        known: values of the nodes that it starts from.
    """
    given = {node: value for node, value in known.items() if node is not root}
    expected = _tensors(_evaluate(root, given, None))
    unsure = [torch.zeros(value.shape, dtype=torch.bool) for value in expected]
    for run in range(_RUNS_OF_ELEMENTS):
        changed = _tensors(_evaluate(root, given, torch.Generator().manual_seed(run)))
        unsure = [found | (a != b) for found, a, b in zip(unsure, changed, expected, strict=True)]
    return unsure


def bits_at_edges(root: fx.Node, known: Mapping[fx.Node, Any]) -> list[np.ndarray[Any, Any] | None]:
    """The bits of each integer or boolean result of ``root`` that rounding may change; None for other results.

    Only what is computed on the way is rounded: the values in ``known``, and so results of them alone, are exact.

    Args:
        root: the node; what it depends on and is not ``known`` is computed again.
        known: values of the nodes that it starts from.
    """
    given = {node: value for node, value in known.items() if node is not root}
    expected = _integers(_evaluate(root, given, None))
    found = [None if value is None else np.zeros_like(value) for value in expected]
    for factor in (1 + _AT_EDGE, 1 - _AT_EDGE):
        moved = _integers(_evaluate(root, given, None, factor))
        for bits, a, b in zip(found, moved, expected, strict=True):
            if bits is not None and a is not None and b is not None:
                bits |= a ^ b
    return found


def _integers(value: Any) -> list[np.ndarray[Any, Any] | None]:
    return [None if each.dtype.is_floating_point else each.contiguous().numpy() for each in _tensors(value)]


def _evaluate(
    root: fx.Node, known: Mapping[fx.Node, Any], generator: torch.Generator | None, factor: float = 1.0
) -> Any:
    """The value of ``root``, with every number changed if there is a generator, and those on the way by ``factor``."""
    values: dict[fx.Node, Any] = {}
    pending = [root]
    with torch.no_grad():
        while pending:
            node = pending[-1]
            missing = [operand for operand in node.all_input_nodes if operand not in values]
            if node in known:
                values[node] = _changed(known[node], generator)
            elif missing:
                pending += missing
                continue
            elif node not in values:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                result = node.target(*args, **kwargs)  # type: ignore[operator]
                values[node] = result if node is root else _changed(_scaled(result, factor), generator)
            pending.pop()
    return values[root]


def _changed(value: Any, generator: torch.Generator | None) -> Any:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous()
        if generator is None or tensor.dtype != torch.float32:
            return tensor
        signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
        return tensor * (1 + _UNIT * signs)

    return torch.utils._pytree.tree_map_only(Tensor, change, value)


def _scaled(value: Any, factor: float) -> Any:
    def scale(tensor: Tensor) -> Tensor:
        return tensor * factor if tensor.dtype == torch.float32 else tensor

    return value if factor == 1 else torch.utils._pytree.tree_map_only(Tensor, scale, value)


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
