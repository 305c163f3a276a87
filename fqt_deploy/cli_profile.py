"""The command fqt-profile: where the time and memory of a compiled step go; needs neither PyTorch nor the compiler.

Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fqt_deploy import __version__
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.profiling.kernel_classes import DIRECTIONS
from fqt_deploy.profiling.rows import SORTS
from fqt_deploy.terminal import open_standard_streams, print_line, tell

if TYPE_CHECKING:
    from fqt_deploy.profiling.rows import Row
    from fqt_deploy.profiling.step_profile import StepProfile, TorchTimes

EXAMPLES = """
\b
Examples:
  fqt-profile vgg16_cifar.fqt                                    a table by layer and direction, and what to change
  fqt-profile vgg16_cifar.fqt --model vgg16_cifar.py             beside PyTorch's times; needs PyTorch
  fqt-profile vgg16_cifar.fqt --sort time --only 'features.*'
  fqt-profile vgg16_cifar.fqt --data train.npz --html report.html --trace trace.json
  fqt-profile vgg16_cifar.fqt --save pi.json                     on a Raspberry Pi; then, on a PC:
  fqt-profile pi.json pc.json --html both.html                   profiles of several artifacts or machines, compared

\b
The timeline opens in https://ui.perfetto.dev and in chrome://tracing. The report is one file that needs no network.
Times are void on a busy machine; the table says so.
"""


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR_OR_JSON...")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PATH", help="Data to load meanwhile.  [default: noise]"
)
@click.option(
    "--steps", type=click.IntRange(1, 10**4), metavar="N",
    help="Steps to measure at least, whole and by kernel.  [default: 8; 3 and more of long ones]",
)  # fmt: skip
@click.option("--model", type=click.Path(path_type=Path), metavar="FILE.py", help="Measure PyTorch on this model, too.")
@click.option(
    "--torch", "modes", default="fp32,bf16", show_default=True, metavar="LIST",
    help="How PyTorch runs it: some of fp32, bf16, compile.",
)  # fmt: skip
@click.option(
    "--sort", type=click.Choice(["model", *SORTS]), default="model", show_default=True, help="Order of the rows."
)
@click.option("--only", multiple=True, metavar="GLOB", help="Rows of these layers alone. Repeatable.")
@click.option("--direction", multiple=True, type=click.Choice(DIRECTIONS), help="Rows of these alone. Repeatable.")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE.json", help="Write the profile itself.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows as JSON.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the rows as CSV.")
@click.option("--trace", type=click.Path(path_type=Path), metavar="FILE.json", help="Write a timeline for Perfetto.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write a report; needs the extra report.")
@click.option(
    "--ir", type=click.Path(path_type=Path), metavar="DIR", help="Show the passes that --dump-ir wrote there."
)
@click.option(
    "--watched", type=click.Path(path_type=Path), metavar="FILE.csv", help="Show what --watch-log wrote there."
)
@click.option("--times", type=click.Path(path_type=Path), metavar="FILE", help="Show what a C program noted there.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")
@click.version_option(__version__)
def main(
    paths: tuple[Path, ...],
    data: Path | None,
    steps: int | None,
    model: Path | None,
    modes: str,
    sort: str,
    only: tuple[str, ...],
    direction: tuple[str, ...],
    save: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    trace: Path | None,
    html: Path | None,
    ir: Path | None,
    watched: Path | None,
    times: Path | None,
    quiet: bool,
) -> None:
    """Measure the steps of artifacts, or show profiles that were saved."""
    open_standard_streams()
    try:
        if len(paths) > 1 and (save or csv_file or json_file or trace or times):
            raise FqtError("several profiles are compared as text or --html", code="FQT202", hint="give one path")
        profiles = [_profile(path, data, times, steps, model, modes, quiet) for path in paths]
        profiles = _told_apart(profiles, paths)
        profiles[0] = _with_extras(profiles[0], ir, watched)
        rows = _chosen(profiles[0], sort, only, direction)
        _write(profiles, rows, {"save": save, "json": json_file, "csv": csv_file, "trace": trace, "html": html})
        if not quiet:
            _print(profiles, rows)
    except FqtError as error:
        tell(error.render())
        sys.exit(1)


def _profile(
    path: Path, data: Path | None, times: Path | None, steps: int | None, model: Path | None, modes: str, quiet: bool
) -> StepProfile:
    """The profile at ``path``: saved there, or measured of the artifact there."""
    from dataclasses import replace

    from fqt_deploy.profiling.c_times import profile_of_times
    from fqt_deploy.profiling.profile_artifact import profile_artifact
    from fqt_deploy.profiling.step_profile import read_profile

    if path.is_file():
        profile = read_profile(path)
    elif times is not None:
        profile = profile_of_times(path, times)
    else:
        if not quiet:
            tell("measuring the step ...")
        profile = profile_artifact(path, data=data, steps=steps)
    if model is not None:
        if not quiet:
            tell("measuring PyTorch ...")
        profile = replace(profile, torch=_torch_times(model, profile.batch, modes))
    return profile


def _told_apart(profiles: list[StepProfile], paths: tuple[Path, ...]) -> list[StepProfile]:
    """The profiles under names that differ: of one model on two machines they are called after their files."""
    spellings: tuple[Callable[[int], str], ...] = (
        lambda i: profiles[i].name,
        lambda i: paths[i].stem,
        lambda i: str(paths[i]),
        lambda i: f"{paths[i]} ({i + 1})",
    )
    for spelling in spellings:
        names = [spelling(i) for i in range(len(profiles))]
        if len(set(names)) == len(names):
            return [profile.named(name) for profile, name in zip(profiles, names, strict=True)]
    raise AssertionError("numbers differ")


def _torch_times(model: Path, batch: int, modes: str) -> TorchTimes:
    """PyTorch's times of the model file, in the modes of a list with commas."""
    from fqt_deploy.core.compiler_extra import require_compiler

    require_compiler()
    from fqt_deploy.capture.load_model import load_model
    from fqt_deploy.profiling.torch_times import MODES, torch_times

    chosen = tuple(filter(None, modes.split(",")))
    if unknown := [mode for mode in chosen if mode not in MODES]:
        raise FqtError(f"--torch {unknown[0]!r} is unknown", code="FQT202", hint=f"it may be {', '.join(MODES)}")
    return torch_times(load_model(model, batch=(batch,)), chosen)


def _with_extras(profile: StepProfile, ir: Path | None, watched: Path | None) -> StepProfile:
    from dataclasses import replace

    from fqt_deploy.profiling.pass_changes import read_passes
    from fqt_deploy.runtime.watch_log import read_watch_log

    if ir is not None:
        profile = replace(profile, passes=read_passes(ir))
    if watched is not None:
        profile = replace(profile, statistics=read_watch_log(watched))
    return profile


def _chosen(profile: StepProfile, sort: str, only: tuple[str, ...], direction: tuple[str, ...]) -> list[Row]:
    """The rows that were asked for; FQT204 if a glob matches none."""
    from fqt_deploy.profiling.rows import layer_rows

    rows = layer_rows(profile)
    for glob in only:
        if not any(fnmatchcase(row.layer, glob) for row in rows):
            layers = dict.fromkeys(row.layer for row in rows)
            raise FqtError(f"--only {glob!r} matches no layer", code="FQT204", hint=f"they are: {', '.join(layers)}")
    found = [
        row
        for row in rows
        if (not only or any(fnmatchcase(row.layer, glob) for glob in only))
        and (not direction or row.direction in direction)
    ]
    return found if sort == "model" else sorted(found, key=SORTS[sort])


def _write(profiles: list[StepProfile], rows: list[Row], files: dict[str, Path | None]) -> None:
    from fqt_deploy.profiling.tables import rows_csv, rows_json
    from fqt_deploy.profiling.timeline import timeline
    from fqt_deploy.runtime.files import replace_file

    first = profiles[0]
    if (path := files["save"]) is not None:
        first.save(path)
    texts: dict[str, Callable[[], str]]
    texts = {"json": lambda: rows_json(first, rows), "csv": lambda: rows_csv(rows), "trace": lambda: timeline(first)}
    for kind, text in texts.items():
        if (path := files[kind]) is not None:
            replace_file(path, text().encode())
    if (path := files["html"]) is not None:
        from fqt_deploy.profiling.html_report import html_report

        replace_file(path, html_report(profiles).encode())


def _print(profiles: list[StepProfile], rows: list[Row]) -> None:
    from fqt_deploy.profiling.tables import comparison_text, profile_text, step_lines

    if len(profiles) == 1:
        print_line(profile_text(profiles[0], rows))
        return
    print_line(comparison_text(profiles))
    for profile in profiles:
        print_line(f"\n{profile.name}")
        print_line("\n".join(step_lines(profile)))


if __name__ == "__main__":
    main()
