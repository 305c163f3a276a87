"""Digests of the kernels that a model compiles to, to see which a change of the compiler touches.

Run it before and after the change and compare what it prints::

    python -m tools.kernel_digest examples/digits_cnn.py --batch 8 > before.txt
    python -m tools.kernel_digest examples/digits_cnn.py --batch 8 > after.txt && diff before.txt after.txt

One line a kernel, in the order of the calls, and one line for the program around them: calls, operands and memory. A
digest is of a kernel's loop nests before scheduling, or after it with ``--scheduled``; names of kernels do not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import tvm
from tvm import tirx

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.codegen.to_relax import RelaxProgram, to_relax
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.settings import merge_settings, options_of
from fqt_deploy.targets.registry import make_target

SELECTIONS = ("sampled", "topk", "once", "nested")
RECIPES: dict[str, dict[str, Any]] = {
    "none": {"recipe": "none"},
    "psq-1": {"recipe": "psq-1"},
    "scq": {"recipe": "scq"},
    **{f"scq+agp/{agp}": {"recipe": "scq+agp", "agp": agp} for agp in SELECTIONS},
}
"""The settings to compile with, by the name to print, as ``compile_options`` of a model file has them."""


def digest(text: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kernel_digest(function: tirx.PrimFunc) -> str:
    """The digest of a kernel's text, whatever the kernel is called."""
    return digest(function.without_attr("global_symbol").script(name="kernel"))


def program_digests(program: RelaxProgram, prepare: Callable[[tirx.PrimFunc], tirx.PrimFunc]) -> Iterator[str]:
    """A line for each kernel, after ``prepare``, and one for the functions that call them."""
    functions = {v.name_hint: f for v, f in program.module.functions.items()}
    kernels = {name: kernel_digest(prepare(f)) for name, f in functions.items() if isinstance(f, tirx.PrimFunc)}
    callers = {v: f for v, f in program.module.functions.items() if v.name_hint not in kernels}
    text = tvm.IRModule(callers).script()
    # Kernels are called by digest, values numbered in the order of their use: names do not count, nor does the order
    # in which returned arrays are allocated.
    lines = [line for line in text.splitlines() if "R.builtin.alloc_tensor" not in line]
    number: dict[str, str] = {}
    calls = re.sub(
        r"\b(?:fqt_\w+|gv\d*)\b",
        lambda found: kernels.get(found[0]) or number.setdefault(found[0], f"value{len(number)}"),
        "\n".join(lines),
    )
    order = {name: text.find(name + "(") for name in kernels}
    for name in sorted(kernels, key=lambda name: order[name]):
        yield f"{kernels[name]} {re.sub(r'_([0-9]+|[0-9a-f]{16})$', '', name)}"
    yield f"{digest(calls)} program of {len(kernels)} kernels"


def digests(source: ModelSource, settings: dict[str, Any], *, scheduled: bool) -> Iterator[str]:
    """The lines for one recipe; one line alone if the model cannot be compiled with it."""
    options = options_of(merge_settings(source.options, settings))
    target = make_target(options.target, options.target_options)
    try:
        lowered = lower_model(source, options)
    except FqtError as error:
        yield f"refused: {error.code}"
        return
    yield from program_digests(
        to_relax(lowered.train, lowered.predict), target.schedule if scheduled else lambda function: function
    )


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--batch", type=click.IntRange(min=1), help="Samples in a step.  [default: as in example_inputs()]")
@click.option(
    "--recipe", "recipes", multiple=True, type=click.Choice(list(RECIPES)), help="Repeatable.  [default: all]"
)
@click.option("--scheduled", is_flag=True, help="Digests of the kernels as the target schedules them.")
@click.option("--mcpu", help="Processor to schedule for.  [default: this machine's]")
@click.option("--exclude", multiple=True, help="As of fqt-compile.")
@click.option("--brief", is_flag=True, help="One line a recipe: a digest of all its lines.")
def main(
    models: tuple[Path, ...],
    batch: int | None,
    recipes: tuple[str, ...],
    scheduled: bool,
    mcpu: str | None,
    exclude: tuple[str, ...],
    brief: bool,
) -> None:
    """Print a digest of every kernel of MODELS, and one of the program around them, for each recipe."""
    given: dict[str, Any] = {"mcpu": mcpu, "exclude": exclude}
    common = {name: value for name, value in given.items() if value}
    for path in models:
        for recipe in recipes or tuple(RECIPES):
            source = load_model(path, batch=batch)
            lines = list(digests(source, {**common, **RECIPES[recipe]}, scheduled=scheduled))
            name = f"{path.name} {recipe}"
            if brief:
                print(f"{digest(chr(10).join(lines))} {name}: {lines[-1]}", flush=True)
            else:
                print("\n".join([f"# {name}", *lines]), flush=True)


if __name__ == "__main__":
    main()
