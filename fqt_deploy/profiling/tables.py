"""Profiles as text, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from fqt_deploy.profiling.rows import Row, class_rows, layer_rows
from fqt_deploy.profiling.step_profile import StepProfile
from fqt_deploy.profiling.verdict import verdict

LAYER_COLUMNS = ("layer", "direction", "runs as", ">calls", ">ms", ">share", ">roofline", ">MB", ">M MAC")
"""What is shown of every layer and direction, in a terminal and in a report."""
_LAYER = (*LAYER_COLUMNS, ">fp32", ">bf16", ">speedup")
_CLASS = ("class", ">calls", ">ms", ">share", ">roofline", ">MB", ">M MAC")


def profile_text(profile: StepProfile, rows: Sequence[Row]) -> str:
    """The profile with ``rows`` of its layers, its classes, the whole step and the verdict, for a terminal."""
    return "\n\n".join(
        [
            aligned(_LAYER, map(_layer_cells, rows)),
            aligned(_CLASS, map(_class_cells, class_rows(profile))),
            "\n".join(step_lines(profile)),
            "\n".join(f"- {sentence}" for sentence in verdict(profile)),
        ]
    )


def step_lines(profile: StepProfile) -> list[str]:
    """The whole step in words: measured, beside the sum of its kernels and PyTorch's step; warnings come first."""
    step, kernels = profile.step_s, profile.kernels_s
    machine = profile.machine
    lines = [f"warning: {doubt}: times are void" for doubt in profile.doubts]
    lines.append(
        f"step {1e3 * step:.2f} ms, {profile.batch / step:.0f} samples/s; its kernels sum to {1e3 * kernels:.2f} ms, "
        f"{100 * kernels / step:.1f} % of it"
    )
    for mode, seconds in profile.torch.steps.items():
        lines.append(f"PyTorch {mode} {1e3 * seconds:.2f} ms, {seconds / step:.2f} times as long")
    lines.append(
        f"{machine.processor}, {machine.threads} threads on {machine.cores} cores; at most "
        f"{profile.ceilings.fp32_macs / 1e9:.0f} G MAC/s in fp32, {profile.ceilings.bit_macs / 1e9:.0f} in 1 bit, "
        f"{profile.ceilings.bytes / 1e9:.1f} GB/s"
    )
    return lines


def rows_csv(rows: Iterable[Row]) -> str:
    """The rows as CSV, with a line of names; seconds, bytes and multiply-accumulates as plain numbers."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, [*names, "roofline_share", "speedup"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_record(row) for row in rows)
    return text.getvalue()


def rows_json(profile: StepProfile, rows: Iterable[Row]) -> str:
    """The profile's summary and ``rows`` as JSON."""
    found = {
        "name": profile.name,
        "machine": dataclasses.asdict(profile.machine),
        "step_s": profile.step_s,
        "kernels_s": profile.kernels_s,
        "torch_step_s": dict(profile.torch.steps),
        "doubts": profile.doubts,
        "verdict": verdict(profile),
        "rows": [_record(row) for row in rows],
        "classes": [_record(row) for row in class_rows(profile)],
    }
    return json.dumps(found, indent=1) + "\n"


def comparison_text(profiles: Sequence[StepProfile]) -> str:
    """Two or more profiles beside each other: the whole steps, and milliseconds by layer and direction."""
    found = [{(row.layer, row.direction): row for row in layer_rows(profile)} for profile in profiles]
    keys = dict.fromkeys(key for rows in found for key in rows)
    header = ("layer", "direction", *(f">{profile.name}" for profile in profiles))
    cells = [(*key, *(_ms(rows[key].seconds) if key in rows else "" for rows in found)) for key in keys]
    cells.append(("step", "", *(_ms(profile.step_s) for profile in profiles)))
    return aligned(header, cells)


def _record(row: Row) -> dict[str, Any]:
    return {**dataclasses.asdict(row), "roofline_share": row.roofline_share, "speedup": row.speedup}


def _layer_cells(row: Row) -> tuple[str, ...]:
    speedup = f"{row.speedup:.1f}x" if row.speedup is not None else ""
    theirs = (_ms(seconds) if seconds is not None else "" for seconds in (row.torch_fp32_s, row.torch_bf16_s))
    return (row.layer, row.direction, row.runs_as, *_numbers(row), *theirs, speedup)


def _class_cells(row: Row) -> tuple[str, ...]:
    return (row.layer, *_numbers(row))


def _numbers(row: Row) -> tuple[str, ...]:
    return (
        str(row.calls), _ms(row.seconds), f"{100 * row.share:.1f} %", f"{100 * row.roofline_share:.0f} %",
        f"{row.bytes / 1e6:.2f}", f"{(row.fp32_macs + row.bit_macs) / 1e6:.1f}",
    )  # fmt: skip


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}"


def aligned(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text; a leading ``>`` in the header aligns a column to the right, and empty columns are left out."""
    cells = [[name.removeprefix(">") for name in header], *map(list, rows)]
    kept = [i for i in range(len(header)) if any(row[i] for row in cells[1:])]
    widths = {i: max(len(row[i]) for row in cells) for i in kept}
    lines = [
        "  ".join(row[i].rjust(widths[i]) if header[i].startswith(">") else row[i].ljust(widths[i]) for i in kept)
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
