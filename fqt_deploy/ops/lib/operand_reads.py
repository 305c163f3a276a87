"""How often the formula of an op mentions its operands: what inlining their formulas there would cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.lib.late_modules import te, tvm_ffi
from fqt_deploy.ops.op import Op

_measured: dict[str, tuple[int, ...]] = {}


def operand_reads(op: type[Op], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> tuple[int, ...]:
    """For each tensor operand, in order, how often the formula of one element of the result mentions it.

    Counted in the text, where equal subexpressions are repeated; a reduction counts one term. Measured once for each op
    and its arguments.

    Args:
        op: definition of an op with a kernel.
        args: positional arguments of the call, with fake or real tensors.
        kwargs: by name.
        result: meta tensor, or a tuple of them, with the result's shape and dtype.
    """
    key = json.dumps([str(op.target), _signature(args), _signature(sorted(kwargs.items())), _signature([result])])
    if key not in _measured:
        _measured[key] = _measure(op, args, kwargs, result)
    return _measured[key]


def _signature(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return [dtype_name(argument.dtype), [int(d) for d in argument.shape]]
    return [_signature(item) for item in argument] if isinstance(argument, (list, tuple)) else repr(argument)


def _measure(op: type[Op], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> tuple[int, ...]:
    operands: list[te.Tensor] = []

    def placed(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [placed(item) for item in argument]
        if not isinstance(argument, Tensor):
            return argument
        shape = [int(d) for d in argument.shape]
        operands.append(te.placeholder(shape, dtype_name(argument.dtype), name=f"operand{len(operands)}"))
        return operands[-1]

    bound = op.bound([placed(a) for a in args], {name: placed(a) for name, a in kwargs.items()})
    stages = bound.stages(result, "result")
    totals: Counter[Any] = Counter()
    for stage in stages if isinstance(stages, (list, tuple)) else [stages]:
        totals += _mentions(stage, {})
    return tuple(totals[operand.op.name] for operand in operands)


def _mentions(tensor: te.Tensor, known: dict[Any, Counter[Any]]) -> Counter[Any]:
    """Mentions of placeholders, by their names, in the formula of one element, stages before it inlined."""
    if isinstance(tensor.op, te.PlaceholderOp):
        return Counter({tensor.op.name: 1})
    if tensor not in known:
        loads: list[te.Tensor] = []
        tvm_ffi.structural_walk(tensor.op.body[tensor.value_index], (te.Tensor, loads.append))
        total: Counter[Any] = Counter()
        for load in loads:
            total.update(_mentions(load, known))
        known[tensor] = total
    return known[tensor]
