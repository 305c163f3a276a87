"""Translation of lowered graphs to one TVM module: a Relax function each, and the kernels they call."""

from __future__ import annotations

import hashlib
import itertools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax, tirx

from fqt_deploy.codegen.buffer_lifetimes import buffer_lifetimes
from fqt_deploy.codegen.kernel_function import definition_of, kernel_function, kernel_key, kernel_op_name
from fqt_deploy.codegen.kernel_grouping import Kernel, View, group_kernels, kind_of, overwritten
from fqt_deploy.codegen.memory_plan import Lifetime, MemoryPlan, plan_memory
from fqt_deploy.core.buffer import Buffer, buffer_of, buffers_of
from fqt_deploy.core.call import call_of
from fqt_deploy.core.diagnostics import SourceLocation
from fqt_deploy.core.graph import TrainingGraph, shape, values_of
from fqt_deploy.core.manifest import (
    EXCHANGE_FINISH,
    EXCHANGE_START,
    EXCHANGE_STATISTICS,
    PROCESS_SHARE,
    KernelInfo,
    function_name,
)
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import FqtOp, Kind

aten = torch.ops.aten
fqt = torch.ops.fqt


@dataclass(frozen=True)
class RelaxProgram:
    """A TVM module and what its kernels are.

    Attributes:
        callers: Relax functions ``train_step`` and ``predict``; the kernels that they call are declared.
        kernels: the kernel calls of ``train_step`` in execution order.
        calls: what each call computes, for verification, in the same order.
        memory: where the intermediate values of ``train_step`` lie.
        values: those values in time: when they are alive, counted in kernel calls.
        distinct: one call of each kernel, by the kernel's symbol.
        others: kernels and calls, as above, of the training steps for other shapes.
    """

    callers: tvm.IRModule
    kernels: tuple[KernelInfo, ...]
    calls: tuple[Kernel, ...]
    memory: MemoryPlan
    values: tuple[Lifetime, ...]
    distinct: Mapping[str, Kernel]
    others: tuple[tuple[tuple[KernelInfo, ...], tuple[Kernel, ...]], ...] = ()

    def variants(self) -> tuple[RelaxProgram, ...]:
        """The program once for each training step, whose kernels and calls it then has."""
        return (self, *(replace(self, kernels=kernels, calls=calls) for kernels, calls in self.others))

    def function(self, symbol: str) -> tirx.PrimFunc:
        """The kernel ``symbol``, not scheduled."""
        return kernel_function(self.distinct[symbol]).with_attr("global_symbol", symbol)

    def texts(self) -> dict[str, str]:
        """The texts, by symbol, that say all that a kernel's loop nests depend on."""
        return {symbol: repr(kernel_key(kernel)) for symbol, kernel in self.distinct.items()}

    def small(self) -> frozenset[str]:
        """The kernels that touch few elements, as of a vector of channels: how well LLVM optimizes them is not felt."""
        return frozenset(symbol for symbol, kernel in self.distinct.items() if _is_small(kernel))

    @cached_property
    def module(self) -> tvm.IRModule:
        """The whole program: the callers and the kernels, not scheduled."""
        return tvm.IRModule(
            {
                v: self.function(v.name_hint) if v.name_hint in self.distinct else f
                for v, f in self.callers.functions.items()
            }
        )


@dataclass
class _Emitter:
    """Adds functions to one module; equal kernels are added once.

    Attributes:
        builder: the builder of the module.
        symbols: kernel key -> global symbol's variable.
        distinct: the first call of each kernel, by symbol.
        plans: memory of each function.
        values: for each function, when its values are alive, counted in kernel calls.
    """

    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    symbols: dict[Any, Any] = field(default_factory=dict)
    distinct: dict[str, Kernel] = field(default_factory=dict)
    plans: list[MemoryPlan] = field(default_factory=list)
    values: list[tuple[Lifetime, ...]] = field(default_factory=list)

    def function(self, name: str, graph: TrainingGraph) -> tuple[list[KernelInfo], list[Kernel]]:
        """Emit ``graph`` as Relax function ``name`` of its inputs; it returns the outputs that are not state."""
        placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        values: dict[fx.Node, Any] = {
            node: relax.Var(_identifier(label), _type(node.meta["val"]))
            for label, node in zip(graph.inputs, placeholders, strict=True)
        }
        written = destinations(graph)
        infos: list[KernelInfo] = []
        calls: list[Kernel] = []
        steps = group_kernels(graph)
        results = [n for label, n in self._outputs(graph) if label not in graph.state]
        exchanges = {s.root: i for i, s in enumerate(s for s in steps if isinstance(s, Kernel) and _exchanges(s.root))}
        awaited: set[fx.Node] = set()
        with self.builder.function(name, list(values.values()), pure=False):
            buffers = self._allocate(steps, results, written)
            for step in steps:
                if isinstance(step, View):
                    source = values[step.source]
                    values[step.node] = self.builder.emit(relax.op.reshape(source, shape(step.node)))
                else:
                    self._await(step, exchanges, awaited)
                    infos.append(self._kernel(step, values, written, buffers))
                    calls.append(step)
                    if step.root.target is fqt.process_share.default:
                        self._call(PROCESS_SHARE, values[step.root])
                    sums = definition_of(step.root).exchanged_sums
                    if sums is not None:
                        numbers = [relax.prim_value(number) for number in (call_of(step.root).count, sums)]
                        self._call(EXCHANGE_STATISTICS, *numbers, *[buffers[b] for b in buffers_of(step.root)])
                    if step.root in exchanges:
                        rows = definition_of(step.root).exchanged_rows
                        kept = [] if rows is None else [values[getattr(call_of(step.root), rows)]]
                        self._call(EXCHANGE_START, values[step.root], relax.prim_value(exchanges[step.root]), *kept)
            returned = [values[n] for n in results]
            self.builder.emit_func_output(relax.Tuple(returned) if len(returned) > 1 else returned[0])
        return infos, calls

    def _await(self, kernel: Kernel, exchanges: Mapping[fx.Node, int], awaited: set[fx.Node]) -> None:
        """Wait for the exchange of what ``kernel`` reads; ``awaited`` are those that are over."""
        for root in dict.fromkeys(buffer_of(leaf).root for leaf in kernel.leaves):
            if root in exchanges and root not in awaited:
                awaited.add(root)
                self._call(EXCHANGE_FINISH, relax.prim_value(exchanges[root]))

    def _call(self, name: str, *arguments: Any) -> None:
        """Emit a call of the function ``name`` of the runtime or the library."""
        if name not in self.symbols:
            self.symbols[name] = self.builder.add_func(relax.ExternFunc(name, _KERNEL_TYPE), name)
        self.builder.emit(relax.Call(self.symbols[name], list(arguments)))

    @staticmethod
    def _outputs(graph: TrainingGraph) -> list[tuple[str, fx.Node]]:
        return list(graph.results().items())

    def _allocate(
        self, steps: list[Kernel | View], results: list[fx.Node], written: dict[fx.Node, list[fx.Node]]
    ) -> dict[Buffer, Any]:
        """A variable for each result of each kernel: in one block of memory, but for what the function returns."""
        returned = dict.fromkeys(buffer_of(node) for node in results)  # in order: the same program in every run
        lifetimes = {b: life for b, life in buffer_lifetimes(steps, written).items() if b not in returned}
        plan = plan_memory(list(lifetimes.values()))
        self.plans.append(plan)
        self.values.append(_in_calls(list(lifetimes.values()), steps))
        buffers = {}
        if lifetimes:
            block = relax.op.memory.alloc_storage(relax.ShapeExpr([plan.size]), 0, "global", "uint8")
            storage = self.builder.emit(block)
            for buffer, offset in zip(lifetimes, plan.offsets, strict=True):
                value = buffer.value
                size = relax.ShapeExpr([int(d) for d in value.shape])
                array = relax.op.memory.alloc_tensor(storage, offset, size, dtype_name(value.dtype))
                buffers[buffer] = self.builder.emit(array)
            self._call(PLACE_ARRAYS, *buffers.values())
        for buffer in returned:
            value = buffer.value
            size = relax.ShapeExpr([int(d) for d in value.shape])
            buffers[buffer] = self.builder.emit(relax.op.builtin.alloc_tensor(size, dtype_name(value.dtype), 0))
        return buffers

    def _kernel(
        self,
        kernel: Kernel,
        values: dict[fx.Node, Any],
        written: dict[fx.Node, list[fx.Node]],
        buffers: dict[Buffer, Any],
    ) -> KernelInfo:
        key = kernel_key(kernel)
        if key not in self.symbols:
            name = kernel_symbol(kernel)
            assert name not in self.distinct, f"two kernels are called {name}"
            self.distinct[name] = kernel
            self.symbols[key] = self.builder.add_func(relax.ExternFunc(name, _KERNEL_TYPE), name)
        symbol = self.symbols[key]
        operands = [values[leaf] for leaf in kernel.leaves]
        operands += [relax.const(number, "int32") for number in kernel.numbers().values()]
        if kernel.root in written:
            state = [values[node] for node in written[kernel.root]]
            self.builder.emit(relax.Call(symbol, [*operands, *state]))
            values[kernel.root] = state[0]  # what reads the new value reads the state
            for user in kernel.root.users:
                if user.target is operator.getitem:
                    values[user] = state[call_of(user).index]
            return _info(kernel, symbol.name_hint)
        results = [buffers[buffer] for buffer in buffers_of(kernel.root)]
        self.builder.emit(relax.Call(symbol, [*operands, *results]))
        values[kernel.root] = results[0]
        for user in kernel.root.users:
            if user.target is operator.getitem:
                values[user] = results[call_of(user).index]
        return _info(kernel, symbol.name_hint)


def to_relax(
    train: TrainingGraph, predict: TrainingGraph, others: Sequence[tuple[TrainingGraph, TrainingGraph]] = ()
) -> RelaxProgram:
    """Emit the training step and the prediction as one module.

    Args:
        train: lowered training graph; state outputs are written in place.
        predict: lowered evaluation graph.
        others: the same for other shapes of batches; ``function_name`` says how their functions are called.
    """
    emitter = _Emitter()
    infos, calls = emitter.function("train_step", train)
    emitter.function("predict", predict)
    found = []
    for number, (other, prediction) in enumerate(others, start=1):
        more = emitter.function(function_name("train_step", number), other)
        emitter.function(function_name("predict", number), prediction)
        found.append((tuple(more[0]), tuple(more[1])))
    module = emitter.builder.finalize()
    return RelaxProgram(
        module, tuple(infos), tuple(calls), emitter.plans[0], emitter.values[0], emitter.distinct, tuple(found)
    )


def _in_calls(lifetimes: list[Lifetime], steps: list[Kernel | View]) -> tuple[Lifetime, ...]:
    """The ``lifetimes`` with kernel calls for steps; what a view reads is alive until the call before it."""
    calls = list(itertools.accumulate(isinstance(step, Kernel) for step in steps))
    return tuple(Lifetime(life.size, calls[life.first] - 1, calls[life.last] - 1) for life in lifetimes)


def kernel_symbol(kernel: Kernel) -> str:
    """The kernel's name: its op, and a digest of what it computes, so that it is called the same in every program."""
    return f"fqt_{kernel_op_name(kernel)}_{hashlib.sha256(repr(kernel_key(kernel)).encode()).hexdigest()[:16]}"


def destinations(graph: TrainingGraph) -> dict[fx.Node, list[fx.Node]]:
    """Nodes that write state in place, with the state inputs that they write, in output order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if kind_of(node) is Kind.UPDATE:
            found[node] = overwritten(node)
    for label, node in graph.results().items():
        if label in graph.state and node.target is aten.clone.default:
            found[node] = [graph.placeholder(label)]
    return found


def _exchanges(node: fx.Node) -> bool:
    """Whether ``node`` is a gradient that is exchanged with other processes."""
    return kind_of(node) is Kind.EXCHANGE


PLACE_ARRAYS = "place_arrays"
"""The function of ``array_places.c`` that lets arrays begin within the block."""
_KERNEL_TYPE = relax.FuncType.opaque_func(ret=relax.TupleType([]))
"""The type of kernels: they return nothing, and write their last arguments."""


def _type(value: torch.Tensor) -> Any:
    return relax.TensorType([int(d) for d in value.shape], dtype_name(value.dtype))


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


_DIRECTIONS = {"forward": "forward", "input_grad": "input_grad", "weight_grad": "weight_grad"}


def _info(kernel: Kernel, symbol: str) -> KernelInfo:
    meta = kernel.root.meta
    phase = _DIRECTIONS.get(meta.get("role", ""), meta.get("phase", "forward"))
    location = SourceLocation.of(kernel.root)
    op = definition_of(kernel.root)
    flops = bit_ops = 0
    if issubclass(op, FqtOp):
        cost = op.bound(*fx.map_arg((kernel.root.args, kernel.root.kwargs), lambda a: a.meta["val"])).cost()
        flops, bit_ops = cost.flops, cost.bit_ops
    return KernelInfo(
        symbol=symbol,
        op=kernel_op_name(kernel),
        layer=meta.get("layer", ""),
        phase=phase,
        flops=flops,
        bit_ops=bit_ops,
        bytes_moved=sum(_bytes(n) for n in (*kernel.leaves, kernel.root)),
        source=location.portable if location else None,
    )


SMALL = 1 << 14
"""Elements, all operands and results together, of a small kernel."""


def _is_small(kernel: Kernel) -> bool:
    if kind_of(kernel.root) is Kind.PRODUCT:
        return False
    values = [v for node in (*kernel.leaves, *kernel.members, kernel.root) for v in values_of(node)]
    return sum(value.numel() for value in values) <= SMALL


def _bytes(node: fx.Node) -> int:
    return sum(int(v.numel()) * v.element_size() for v in values_of(node))
