"""One kernel of the step as a TVM PrimFunc: TE stages of its nodes, producers inlined."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from tvm import s_tir, te, tirx

from fqt_deploy.codegen.kernel_grouping import Kernel, kind_of
from fqt_deploy.codegen.opaque_stages import with_opaque_stages
from fqt_deploy.codegen.shared_reads import with_own_variables, with_shared_reads
from fqt_deploy.core.call import changed
from fqt_deploy.core.graph import values_of
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import FqtOp, Kind, Op, op_of
from fqt_deploy.targets.kernel_arguments import ARGUMENTS, encoded

_NONE: Mapping[str, Any] = {}


def kernel_key(kernel: Kernel) -> tuple[Any, ...]:
    """Equal keys mean equal functions: same ops on operands of same shape and dtype, wired alike.

    The numbers that a kernel reads are not part of it.
    """
    number = {node: i for i, node in enumerate((*kernel.leaves, *kernel.members))}

    def frozen(tree: Any) -> Any:
        if isinstance(tree, fx.Node):
            return ("node", number[tree])
        if isinstance(tree, (list, tuple)):
            return tuple(frozen(item) for item in tree)
        return (type(tree).__name__, str(tree))

    leaves = tuple(_signature(leaf) for leaf in kernel.leaves)
    spelled = [(n, n.args, n.kwargs) for n in kernel.members]
    spelled.append((kernel.root, *changed(kernel.root, dict.fromkeys(kernel.numbers()))))
    calls = tuple(
        (str(n.target), frozen(args), frozen(sorted(kwargs.items())), _signature(n)) for n, args, kwargs in spelled
    )
    return leaves, calls


def kernel_op_name(kernel: Kernel) -> str:
    """Name of the op that the kernel is rooted in, without namespace and overload."""
    return definition_of(kernel.root).name


def definition_of(node: fx.Node) -> type[Op]:
    """The definition of the op that ``node`` calls; a lowered graph holds no others."""
    op = op_of(node)
    assert op is not None, node.target
    return op


def kernel_function(kernel: Kernel) -> tirx.PrimFunc:
    """The kernel's loop nests, unscheduled but for the inlining of element-wise producers.

    Returns:
        A function of the leaves in order, then the numbers, int32 [] each, then the outputs. ``fqt.op`` names the root
        op, ``fqt.outputs`` counts its results, and ``fqt.arguments``, where nothing was inlined and no number is read,
        are its constant arguments by name.
    """
    values: dict[fx.Node, Any] = {}
    parameters = []
    for i, leaf in enumerate(kernel.leaves):
        tensor: torch.Tensor = leaf.meta["val"]
        values[leaf] = te.placeholder([int(d) for d in tensor.shape], dtype_name(tensor.dtype), name=f"leaf{i}")
        parameters.append(values[leaf])
    for i, member in enumerate(kernel.members):
        values[member] = _compute(member, values, f"member{i}")
    numbers = {name: te.placeholder((), "int32", name=name) for name in kernel.numbers()}
    result = _compute(kernel.root, values, "result", numbers)
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    name = kernel_op_name(kernel)
    function = te.create_prim_func([*parameters, *numbers.values(), *outputs])
    function = _inline_producers(function, kernel, name if issubclass(definition_of(kernel.root), FqtOp) else "result")
    attributes = {
        "fqt.op": name,
        "fqt.outputs": len(outputs),
        "tirx.noalias": kind_of(kernel.root) is not Kind.UPDATE,
    }
    if not kernel.members and not numbers:
        attributes[ARGUMENTS] = encoded(definition_of(kernel.root).target, kernel.root.args, kernel.root.kwargs)
    return function.with_attrs(attributes)


def _signature(node: fx.Node) -> Any:
    return tuple((tuple(v.shape), str(v.dtype)) for v in values_of(node))


def _compute(node: fx.Node, values: dict[fx.Node, Any], name: str, numbers: Mapping[str, Any] = _NONE) -> Any:
    """The TE stages of one node, with ``numbers`` in the place of the arguments of these names."""
    args, kwargs = fx.map_arg(changed(node, numbers) if numbers else (node.args, node.kwargs), values.__getitem__)
    return definition_of(node).bound(args, kwargs).stages(node.meta["val"], name)


def _inline_producers(function: tirx.PrimFunc, kernel: Kernel, root_prefix: str) -> tirx.PrimFunc:
    """Inline every stage but the root's own; of an element-wise root, all but the last.

    An update whose own stages come behind that of its gradient keeps it, because several of them read it; inlining the
    gradient costs no time, as Adam's shows, whose first stage reads no gradient.
    """
    schedule = s_tir.Schedule(function)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root")) if _has_root_block(function) else []
    names = [str(schedule.get(block).name_hint) for block in blocks]
    kind = kind_of(kernel.root)
    kept = {i for i, name in enumerate(names) if name.startswith(root_prefix)}
    if kind is Kind.ELEMENTWISE:
        kept = {len(blocks) - 1}
    if kind is Kind.UPDATE and kernel.members:
        kept.add(min(kept) - 1)
    inlined = [name for position, name in enumerate(names) if position not in kept]
    if not inlined:
        return function
    schedule = s_tir.Schedule(with_shared_reads(with_opaque_stages(function, inlined), inlined))
    for name in inlined:
        schedule.compute_inline(schedule.get_sblock(name))
    return with_own_variables(schedule.mod["main"])


def _has_root_block(function: tirx.PrimFunc) -> bool:
    return operator.truth(function.body)
