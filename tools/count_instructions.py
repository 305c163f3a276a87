"""Count the instructions of a compiled step, kernel by kernel: ``python -m tools.count_instructions ARTIFACT``.

Static counts from the disassembly: of the whole kernel, and of its hottest loop, which is the innermost loop with the
most popcounts and byte lookups (``products``), or without any the most vector operations. ``spills`` are loads and
stores of vector registers on the stack. They say how code was generated for a machine that is not at hand, and nothing
about time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.manifest import Manifest

_LABEL = re.compile(r"^[0-9a-f]+ <(?P<name>[^>]+)>:$")
_LINE = re.compile(r"^\s*(?P<address>[0-9a-f]+):\s+(?P<mnemonic>\S+)\s*(?P<operands>[^#<]*)")
_KERNEL = re.compile(r"^(?P<symbol>fqt_\w+)_compute_$")


@dataclass(frozen=True)
class Dialect:
    """The way to read one instruction set.

    Attributes:
        vector: an operand of a vector instruction.
        product: mnemonics that products of bits are made of: those that count bits or look bytes up.
        memory: mnemonics of loads and stores.
        stack: an operand on the stack.
    """

    vector: re.Pattern[str]
    product: re.Pattern[str]
    memory: re.Pattern[str]
    stack: re.Pattern[str]


DIALECTS = {
    "aarch64": Dialect(
        re.compile(r"\bv\d+\.|\bq\d+"), re.compile("cnt|tbl"), re.compile("ld|st"), re.compile(r"\[(sp|x29)")
    ),
    "x86_64": Dialect(
        re.compile("[xyz]mm"), re.compile("v?popcnt|v?pshufb|vpermb"), re.compile("v?mov"), re.compile(r"\((%rsp|%rbp)")
    ),
}


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly."""

    address: int
    mnemonic: str
    operands: str


@dataclass(frozen=True)
class Counts:
    """The counts of instructions in some stretch of code."""

    total: int
    vector: int
    products: int
    spills: int


def disassemble(library: Path, arch: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Kernel symbol and instructions of each kernel; loops that run on worker threads follow their kernel unnamed."""
    objdump = next((name for name in (f"{arch}-linux-gnu-objdump", "objdump") if shutil.which(name)), None)
    if objdump is None:
        raise SystemExit(
            f"there is no objdump for {arch} (Debian: apt install binutils-{arch.replace('_', '-')}-linux-gnu)"
        )
    command = [objdump, "--disassemble", "--no-show-raw-insn", "--wide", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbol, found = None, list[Instruction]()
    for line in [*text.splitlines(), "0 <end>:"]:
        if label := _LABEL.match(line):
            if symbol is not None:
                yield symbol, found
            kernel = _KERNEL.match(label["name"])
            symbol, found = (kernel["symbol"] if kernel else None), []
        elif symbol is not None and (match := _LINE.match(line)):
            found.append(Instruction(int(match["address"], 16), match["mnemonic"], match["operands"]))


def count(instructions: list[Instruction], dialect: Dialect) -> Counts:
    """Counts of a stretch of code."""
    vector = [i for i in instructions if dialect.vector.search(i.operands)]
    return Counts(
        len(instructions),
        len(vector),
        sum(bool(dialect.product.match(i.mnemonic)) for i in instructions),
        sum(bool(dialect.memory.match(i.mnemonic) and dialect.stack.search(i.operands)) for i in vector),
    )


def hottest_loop(instructions: list[Instruction], dialect: Dialect) -> list[Instruction]:
    """The innermost loop, from a backward jump's target to the jump, with the most products or vector operations."""
    position = {instruction.address: i for i, instruction in enumerate(instructions)}
    loops = []
    for end, instruction in enumerate(instructions):
        target = re.findall(r"\b[0-9a-f]{3,}\b", instruction.operands) if instruction.mnemonic[0] in "bjct" else []
        start = position.get(int(target[-1], 16)) if target else None
        if start is not None and start <= end:
            loops.append((start, end))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [instructions[start : end + 1] for start, end in inner]
    return max(bodies, key=lambda body: _heat(count(body, dialect)), default=[])


def _heat(counts: Counts) -> tuple[int, int]:
    return counts.products, counts.vector


def main() -> None:
    """Run the command and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--ops", default="", help="only kernels of these ops, separated by commas")
    arguments = parser.parse_args()
    manifest = Manifest.from_json((arguments.artifact / "manifest.json").read_bytes())
    dialect = DIALECTS[manifest.target["arch"]]
    kernels = {kernel.symbol: kernel for kernel in manifest.kernels}
    wanted = set(filter(None, arguments.ops.split(",")))
    print(f"{manifest.name}, {manifest.target['name']} ({manifest.target['mcpu']}), batch {manifest.batch}\n")
    print("| kernel | layer | instructions | vector | products | spills | hottest loop | vector | products | spills |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for symbol, instructions in disassemble(arguments.artifact / "step.so", manifest.target["arch"]):
        kernel = kernels.get(symbol)
        if kernel is None or (wanted and kernel.op not in wanted):
            continue
        whole, loop = count(instructions, dialect), count(hottest_loop(instructions, dialect), dialect)
        columns = [f"{c.total} | {c.vector} | {c.products} | {c.spills}" for c in (whole, loop)]
        print(f"| {symbol.removeprefix('fqt_')} | {kernel.layer} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
