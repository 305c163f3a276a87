"""Statements of device code: launches, loops, local and shared memory, the intrinsics in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.stmt import ForKind

WARP = 32
ALL_LANES = tirx.const(0xFFFFFFFF, "uint32")
REFERENCE_PROCESSORS = 132
"""Number of multiprocessors that a launch should fill: those of an H100. A constant, so that results depend on no
device.
"""


def integer(value: int) -> Any:
    """The TIR constant of type int32."""
    return tirx.const(value, "int32")


def sequence(*statements: Any) -> Any:
    """One statement made of several; None is left out."""
    flat = [s for statement in statements if statement is not None for s in _parts(statement)]
    return flat[0] if len(flat) == 1 else tirx.SeqStmt(flat)


def _parts(statement: Any) -> list[Any]:
    return list(statement.seq) if isinstance(statement, tirx.SeqStmt) else [statement]


def launch(blocks: int, threads: int, body: Callable[[Any, Any], Any]) -> Any:
    """A kernel of one-dimensional blocks; ``body`` of the index of the block and of the thread in it."""

    def binding(name: str, tag: str) -> tuple[Any, Any]:
        var = tirx.Var(name, "int32")
        return var, tirx.IterVar(None, var, tirx.IterVar.ThreadIndex, tag)

    (block, block_axis), (thread, thread_axis) = binding("block", "blockIdx.x"), binding("thread", "threadIdx.x")
    inner = tirx.For(thread, 0, threads, ForKind.THREAD_BINDING, body(block, thread), thread_axis)
    return tirx.For(block, 0, blocks, ForKind.THREAD_BINDING, inner, block_axis)


def loop(extent: int, body: Callable[[Any], Any], *, unroll: bool = False) -> Any:
    """A loop of ``body`` over 0 to ``extent - 1``, none for one iteration; nvcc unrolls it, if told to."""
    if extent == 1:
        return body(integer(0))
    var = tirx.Var("i", "int32")
    if not unroll:
        return tirx.For(var, 0, extent, ForKind.SERIAL, body(var))
    return tirx.For(var, 0, extent, ForKind.UNROLLED, body(var), None, {"pragma_unroll_explicit": False})


def unrolled(extent: int, body: Callable[[int], Any]) -> Any:
    """The statements ``body`` of the numbers 0 to ``extent - 1``, one after the other."""
    return sequence(*(body(i) for i in range(extent)))


def vector(width: int, body: Callable[[Any], Any]) -> Any:
    """The value of ``body`` of 0 to ``width - 1`` as one vector operation."""
    if width == 1:
        return body(integer(0))
    var = tirx.Var("v", "int32")
    return tirx.For(var, 0, width, ForKind.VECTORIZED, body(var))


def when(condition: Any, then: Any, otherwise: Any = None) -> Any:
    """A branch; no branch where the condition is known."""
    if condition is True:
        return then
    return tirx.IfThenElse(condition, then, otherwise)


def store(buffer: tirx.Buffer, value: Any, *indices: Any) -> Any:
    """The statement ``buffer[indices] = value``."""
    return tirx.BufferStore(buffer, value, list(indices))


def local(shape: Sequence[int], dtype: str, name: str) -> tirx.Buffer:
    """A buffer in the registers of one thread."""
    return tirx.decl_buffer(shape, dtype, name, scope="local")


def shared(shape: Sequence[int], dtype: str, name: str) -> tirx.Buffer:
    """A buffer in the shared memory of one block."""
    return tirx.decl_buffer(shape, dtype, name, scope="shared")


def scratch(shape: Sequence[int], dtype: str, name: str) -> tirx.Buffer:
    """A buffer in device memory that lives from one launch of a function to another."""
    return tirx.decl_buffer(shape, dtype, name)


def with_buffers(buffers: Sequence[tirx.Buffer], body: Any) -> Any:
    """The statement ``body`` with ``buffers`` allocated in front of it."""
    return sequence(*(tirx.AllocBuffer(buffer) for buffer in buffers), body)


def barrier() -> Any:
    """The statement that waits for all threads of the block."""
    return tirx.Evaluate(T.cuda.cta_sync())


def ballot(predicate: Any) -> Any:
    """Bit l of the uint32 result is lane l's predicate."""
    return T.cuda.ballot_sync(ALL_LANES, predicate.astype("int32"))


def shuffle_xor(value: Any, mask: int) -> Any:
    """The value of the lane whose number differs in ``mask``."""
    return T.cuda.__shfl_xor_sync(ALL_LANES, value, integer(mask), integer(WARP))


def popcount(word: Any) -> Any:
    """Number of ones of a 32-bit word, as int32."""
    return tirx.call_pure_extern("int32", "__popc", word)


def as_int32(word: Any) -> Any:
    """The bits of a uint32 as an int32."""
    return tirx.reinterpret("int32", word)


def fused_multiply_add(a: Any, b: Any, c: Any) -> Any:
    """The float32 ``a * b + c``, rounded once; everything else rounds each operation (``toolchain.NVCC_FLAGS``)."""
    return tirx.call_pure_extern("float32", "fmaf", a, b, c)


def ceil_div(a: int, b: int) -> int:
    """The quotient ``a / b`` rounded up."""
    return -(-a // b)
