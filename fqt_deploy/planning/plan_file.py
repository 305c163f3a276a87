"""The file that a plan is given back as: written here, read by ``core/layer_plan.py``."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_plan import FORMAT, FP32, read_plan
from fqt_deploy.planning.choices import Choice, told
from fqt_deploy.planning.plan import ALL_FP32, ASKED, CHOSEN, Plan
from fqt_deploy.planning.plan_text import ms
from fqt_deploy.runtime.files import replace_file


def check_plan_output(path: Path) -> None:
    """FQT508 if a plan cannot be written to ``path``, or would replace another file: said before the work."""
    if not path.parent.is_dir():
        raise FqtError(f"there is no folder {path.parent}", code="FQT508")
    try:
        with tempfile.TemporaryFile(dir=Path(os.path.realpath(path)).parent):
            pass  # a file can be made beside it
    except OSError as error:
        raise FqtError(f"cannot write {path}: {error.strerror}", code="FQT508") from None
    if not path.exists():
        return
    try:
        read_plan(path)
    except FqtError as error:
        hint = "choose another output, or remove it"
        raise FqtError(f"{path} is there, and is no plan: {error.message}", code="FQT508", hint=hint) from None


def write_plan(plan: Plan, path: Path) -> None:
    """Write the chosen plan to ``path``, whole or not at all; FQT508 if that cannot be done."""
    replace_file(path, plan_file(plan, path).encode())


def plan_file(plan: Plan, path: Path) -> str:
    """The text of the file ``path`` that gives the chosen plan back."""
    machine, seconds = plan.machine, plan.measured
    lines = [
        f"# The layers of {plan.name}: fqt-compile ... --plan-file {path.name}",
        '# Lines may be edited: "fp32", or [bits of weights, bits of activations], of a layer or of those that a glob',
        '# names. Of pairs the first that matches counts, "fp32" wherever it stands. Others are as without a plan.',
        f"# {machine.processor}, {machine.threads} threads, batch {plan.batch}: {ms(seconds[CHOSEN])} ms a step, "
        f"{ms(seconds[ASKED])} without the plan, {ms(seconds[ALL_FP32])} in fp32",
        f"format = {FORMAT}",
    ]
    if plan.include:
        lines.append(f"include = [{', '.join(map(_quoted, plan.include))}]")
    lines += ["", "[layers]", *_lines(plan)]
    return "\n".join(lines) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    entries = [
        (f"{_quoted(glob.escape(layer.path))} = {_value(choice, plan.weight_bits)}", layer, choice)
        for layer, choice in zip(plan.layers, plan.chosen.choices, strict=True)
    ]
    width = max(len(entry) for entry, _, _ in entries)
    for entry, layer, choice in entries:
        others = "; ".join(
            f"{told(each)} {ms(layer.seconds[each])}, {layer.noise[each]:.3f}"
            for each in plan.offered
            if each != choice
        )
        own = f"{ms(layer.seconds[choice])} ms, noise {layer.noise[choice]:.3f}"
        yield f"{entry.ljust(width)}  # {own}; {others}"
    for path in plan.excluded:
        yield f'{_quoted(glob.escape(path))} = "{FP32}"  # excluded by the options'


def _value(choice: Choice, weight_bits: int) -> str:
    return f'"{FP32}"' if choice is None else f"[{weight_bits}, {choice}]"


def _quoted(text: str) -> str:
    """The text as TOML's basic string: JSON's, whose escapes TOML has too, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
