"""Tables that the commands print: decisions by layer, passes, timings and verification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from fqt_deploy.compiler.check import CheckReport
    from fqt_deploy.compiler.verify import VerificationReport
    from fqt_deploy.core.manifest import LayerDecision


def decision_table(layers: Iterable[LayerDecision]) -> Table:
    """The table of what became of every convolution and linear layer, from the manifest's per-layer report."""
    table = _table("layer", "kind", "runs as", "because")
    for layer in layers:
        table.add_row(*map(escape, (layer.path, layer.kind, layer.decision, layer.reason)))
    return table


def check_report(report: CheckReport, *, quiet: bool) -> None:
    """Print the decisions, every error as the compiler would show it, and one line of summary; if ``quiet``, errors."""
    console = Console()
    if report.layers and not quiet:
        console.print(decision_table(report.layers))
    told = [] if quiet else [report.selection_note, *report.notes, report.gradient_note, report.summary()]
    for text in [*(error.render() for error in report.errors), *told]:
        if text:
            console.print(text, highlight=False, markup=False, soft_wrap=True)


def pass_table(times: Sequence[tuple[str, float]]) -> Table:
    """Seconds by pass, with their sum."""
    table = _table("pass", ">ms")
    for name, seconds in times:
        table.add_row(name, _ms(seconds))
    table.add_section()
    table.add_row("total", _ms(sum(seconds for _, seconds in times)))
    return table


def verification_table(report: VerificationReport) -> Table:
    """Largest error of every kernel against its PyTorch reference, beside what is allowed."""
    table = _table("layer", "direction", "op", ">error", ">allowed", "")
    for row in report.rows:
        table.add_row(
            row.layer,
            row.direction,
            row.op,
            f"{row.error:.1e}" if row.error else "0",
            f"{row.tolerance:.0e}" if row.tolerance else "equal",
            "ok" if row.ok else "[bold red]MISMATCH[/]",
        )
    return table


def pass_check_table(report: VerificationReport) -> Table:
    """The table of what passes that promise the same numbers did to them, on the example batch."""
    table = _table("pass", ">values compared", ">largest error", "at", "")
    for check in report.passes:
        error = f"{check.error:.1e}" if check.error else "0"
        table.add_row(
            check.name, str(check.compared), error, check.where, "ok" if check.ok else "[bold red]MISMATCH[/]"
        )
    return table


def megabytes(size: int) -> str:
    """The number of bytes ``size`` in MB, as text."""
    return f"{size / 1e6:.1f} MB"


def _table(*headers: str) -> Table:
    """A table with these columns; a leading ``>`` aligns one to the right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header.removeprefix(">"), justify="right" if header.startswith(">") else "left")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"
