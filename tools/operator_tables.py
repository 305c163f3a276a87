"""Write docs/operators.md, the list of what can be lowered, from the definitions: ``python -m tools.operator_tables``.

A test compares the document with what the definitions yield.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.capture.own_decompositions import OWN
from fqt_deploy.ops.aten.aten_op import AtenOp, aten_ops
from fqt_deploy.ops.op import FQT_OPS, Op

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators.md"

_HEAD = """# What can be lowered

Written by `python -m tools.operator_tables`. `fqt-compile --check MODEL.py` says in seconds whether a model holds
anything else.

PyTorch's modules and functions become the operators below when a model is traced; most of them (softmax, layer
normalization, losses, activations) are spelled in simpler ones by PyTorch. An argument that a definition does not
honour must have its default.

## ATen operators with a kernel

"""


def document() -> str:
    """The whole text of ``docs/operators.md``."""
    return _HEAD + "\n".join(_folder(name, ops) for name, ops in _by_file().items()) + _spelled() + _ours()


def _by_file() -> dict[str, list[type[AtenOp]]]:
    files: dict[str, list[type[AtenOp]]] = {}
    for op in aten_ops().values():
        files.setdefault(op.__module__.rpartition(".")[2], []).append(op)
    return dict(sorted(files.items()))


def _folder(name: str, ops: Iterable[type[AtenOp]]) -> str:
    rows = sorted((str(op.target), ", ".join(f"`{argument}`" for argument in op.honoured())) for op in ops)
    return f"### {name.replace('_', ' ').capitalize()}\n\n| operator | arguments |\n|---|---|\n" + "".join(
        f"| `{target}` | {arguments} |\n" for target, arguments in rows
    )


def _spelled() -> str:
    names = ", ".join(f"`{target}`" for target in sorted(map(str, OWN.keys() - aten_ops().keys())))
    return f"\n## Operators that are spelled in those\n\nBeside what PyTorch spells in simpler ones itself: {names}.\n"


def _ours() -> str:
    rows = "".join(
        f"| `fqt.{name}` | {op.traits.kind.value} | {_first_line(op)} |\n" for name, op in sorted(FQT_OPS.items())
    )
    return f"\n## Ops of this compiler\n\n| op | kind | |\n|---|---|---|\n{rows}"


def _first_line(op: type[Op]) -> str:
    return (op.__doc__ or "").split("\n", 1)[0].replace("|", "\\|")


if __name__ == "__main__":
    DOCUMENT.write_text(document())
