"""A report as one HTML file that needs no network: pictures, tables and words, for a browser or a screen reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.profiling import charts
from fqt_deploy.profiling.charts import Spec
from fqt_deploy.profiling.rows import Row, class_rows, layer_rows
from fqt_deploy.profiling.step_profile import StepProfile
from fqt_deploy.profiling.tables import LAYER_COLUMNS, step_lines
from fqt_deploy.profiling.verdict import verdict

_HERE = Path(__file__).parent
_ALIVE = 20
"""Number of values that are listed of those alive at the peak."""
_OPTION = re.compile(r"--[a-z][a-z-]*")
_STATISTICS = {
    "grad_norm": "gradient norm",
    "grad_noise": "gradient noise over signal",
    "flips": "share of signs flipped",
    "saturated": "share of weights at 1 or beyond",
    "kept": "share of the gradient kept",
}


def html_report(profiles: Sequence[StepProfile]) -> str:
    """The report on one profile, or on several beside each other.

    Raises:
        FqtError: FQT509 if the package that draws is not installed.
    """
    page = _Page()
    title = " and ".join(profile.name for profile in profiles)
    body = [f"<h1>Profile of {escape(title)}</h1>"]
    if len(profiles) > 1:
        body += page.comparison(profiles)
    for profile in profiles:
        body += page.profile(profile, profile.name if len(profiles) > 1 else "The step")
    specs = json.dumps(page.specs).replace("</", "<\\/")
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n<link rel='icon' href='data:,'>\n"
        f"<title>Profile of {escape(title)}</title>\n<style>\n{(_HERE / 'report.css').read_text()}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(body)}\n</main>\n<script type='application/json' id='specs'>{specs}</script>\n"
        f"<script>{_vega()}</script>\n<script>\n{(_HERE / 'report.js').read_text()}</script>\n</body>\n</html>\n"
    )


def _vega() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed."""
    try:
        import vl_convert
    except ImportError:
        raise FqtError(
            "reports are drawn with vl-convert-python, which is not installed",
            code="FQT509",
            hint="pip install 'fqt-deploy[report]'; --save keeps the profile for a machine that has it",
        ) from None
    bundle: str = vl_convert.javascript_bundle()
    return bundle.replace("</script", "<\\/script")


class _Page:
    """Parts of a page, and the specifications of its pictures by the names of their places.

    Attributes:
        specs: Vega-Lite specifications.
    """

    def __init__(self) -> None:
        self.specs: dict[str, Spec] = {}

    def comparison(self, profiles: Sequence[StepProfile]) -> Iterator[str]:
        """The profiles beside each other: whole steps, and every layer."""
        yield "<section>\n<h2>Compared</h2>"
        yield self._figure(charts.steps_compared(profiles))
        facts = [
            (
                p.name, f"{p.machine.processor}, {p.machine.threads} threads", p.options.get("recipe", ""), _bits(p),
                str(p.batch), f"{1e3 * p.step_s:.2f}", f"{p.batch / p.step_s:.0f}",
                f"{profiles[0].step_s / profiles[0].batch / p.step_s * p.batch:.2f}",
            )
            for p in profiles
        ]  # fmt: skip
        columns = ("profile", "machine", "recipe", "activation bits", ">batch", ">ms", ">samples/s", ">to the first")
        yield _table("Whole steps", columns, facts)
        found = [{(row.layer, row.direction): row.seconds for row in layer_rows(profile)} for profile in profiles]
        keys = dict.fromkeys(key for rows in found for key in rows)
        cells = [(*key, *(f"{1e3 * rows[key]:.3f}" if key in rows else "" for rows in found)) for key in keys]
        header = ("layer", "direction", *(f">{profile.name}, ms" for profile in profiles))
        yield _table("Milliseconds by layer and direction", header, cells)
        yield "</section>"

    def profile(self, profile: StepProfile, heading: str) -> Iterator[str]:
        """Everything about one profile, under a heading."""
        yield f"<section>\n<h2>{escape(heading)}</h2>"
        yield from (
            f"<p class='alarm' role='alert'>Warning: {escape(doubt)}: times are void.</p>" for doubt in profile.doubts
        )
        lines = [line for line in step_lines(profile) if not line.startswith("warning")]
        yield "".join(f"<p>{escape(line)}</p>" for line in lines)
        yield "<h3>What to change</h3>\n<ul>" + "".join(f"<li>{_sentence(s)}</li>" for s in verdict(profile)) + "</ul>"
        for title, spec in (
            ("Speedup by layer", charts.speedup_by_layer(profile)),
            ("Time by layer", charts.time_by_layer(profile)),
            ("Time by class", charts.time_by_class(profile)),
            ("Roofline", charts.roofline(profile)),
            ("Memory over the step", charts.memory_over_step(profile)),
        ):
            if spec is not None:
                yield f"<h3>{title}</h3>"
                yield self._figure(spec)
        yield from _alive(profile)
        yield "<h3>Every layer and direction</h3>"
        header = (*LAYER_COLUMNS, ">PyTorch ms", ">speedup")
        yield _table("Rows add up to the kernels of a step", header, map(_cells, layer_rows(profile)))
        header = ("class", "", "", ">calls", ">ms", ">share", ">roofline", ">MB", ">M MAC", ">PyTorch ms", ">speedup")
        yield _table("The same by class of kernels", header, map(_cells, class_rows(profile)))
        yield "<h3>Why each layer is what it is</h3>"
        reasons = [(d.path, d.kind, d.decision, d.reason, d.source or "") for d in profile.layers]
        yield _table("Decisions of the compiler", ("layer", "kind", "runs as", "because", "line"), reasons)
        yield from self._statistics(profile)
        yield from _passes(profile)
        yield "</section>"

    def _statistics(self, profile: StepProfile) -> Iterator[str]:
        for column, title in _STATISTICS.items():
            if (spec := charts.statistics_over_steps(profile, column, title)) is not None:
                yield f"<h3>Training: {title}</h3>"
                yield self._figure(spec)

    def _figure(self, spec: Spec) -> str:
        name = f"picture-{len(self.specs)}"
        self.specs[name] = spec
        told = escape(spec["description"])
        return f"<figure><div class='picture' id='{name}'></div><figcaption>{told}.</figcaption></figure>"


def _bits(profile: StepProfile) -> str:
    """The bits of an activation that the 1-bit layers read, such as ``4`` or ``1, 4``; "" if there are none."""
    return ", ".join(map(str, sorted({d.activation_bits for d in profile.layers if d.decision == "1-bit"})))


def _sentence(text: str) -> str:
    """The text, in which options of the command line are marked and not broken."""
    return _OPTION.sub(r"<code>\g<0></code>", escape(text))


def _alive(profile: StepProfile) -> Iterator[str]:
    """What lies in memory at the peak, the largest first."""
    if profile.notes is None:
        return
    alive = profile.notes.alive(len(profile.kernels))
    peak = max(range(len(alive)), key=alive.__getitem__)
    values = sorted((v for v in profile.notes.values if v[1] <= peak <= v[2]), reverse=True)
    kernels = profile.kernels
    cells = [
        (f"{size / 1e6:.2f}", _name(kernels[first]), _name(kernels[last]), f"{last - first + 1}")
        for size, first, last in values[:_ALIVE]
    ]
    blocks = sum(profile.notes.blocks) / 1e6
    told = (
        f"Alive at the peak, call {peak}, {_name(kernels[peak])}: the largest {len(cells)} of {len(values)} values, "
        f"{alive[peak] / 1e6:.1f} MB in all. The plan takes {blocks:.1f} MB, state {profile.state_bytes / 1e6:.1f} MB"
    )
    yield _table(told, (">MB", "written by", "last read by", ">calls alive"), cells)


def _passes(profile: StepProfile) -> Iterator[str]:
    """The lines of each layer before and after each pass that changed them."""
    if not profile.passes:
        return
    yield "<h3>What the passes did to each layer</h3>"
    for layer, changes in profile.passes.items():
        yield f"<details><summary>{escape(layer)}: {len(changes)} passes</summary>"
        for name, before, after in changes:
            yield (
                f"<h4>{escape(name)}</h4><div class='sides'><div>before<pre tabindex='0'>{escape(before)}</pre></div>"
                f"<div>after<pre tabindex='0'>{escape(after)}</pre></div></div>"
            )
        yield "</details>"


def _name(kernel: object) -> str:
    return f"{getattr(kernel, 'layer', '') or '(step)'} {getattr(kernel, 'op', '')}"


def _cells(row: Row) -> tuple[str, ...]:
    theirs = f"{1e3 * row.torch_fp32_s:.3f}" if row.torch_fp32_s is not None else ""
    speedup = f"{row.speedup:.1f}" if row.speedup is not None else ""
    return (
        row.layer, row.direction, row.runs_as if row.direction else "", str(row.calls), f"{1e3 * row.seconds:.3f}",
        f"{100 * row.share:.1f} %", f"{100 * row.roofline_share:.0f} %", f"{row.bytes / 1e6:.2f}",
        f"{(row.fp32_macs + row.bit_macs) / 1e6:.1f}", theirs, speedup,
    )  # fmt: skip


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a leading ``>`` in the header aligns a column to the right, and columns without a name are left out."""
    kept = [i for i, name in enumerate(header) if name]
    number = [" class='number'" if name.startswith(">") else "" for name in header]
    head = "".join(f"<th scope='col'{number[i]}>{escape(header[i].removeprefix('>'))}</th>" for i in kept)
    lines = []
    for row in rows:
        first, *rest = kept
        cells = "".join(f"<td{number[i]}>{escape(str(row[i]))}</td>" for i in rest)
        lines.append(f"<tr><th scope='row'{number[first]}>{escape(str(row[first]))}</th>{cells}</tr>")
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{escape(caption, quote=True)}'>"
        f"<table><caption><span>{escape(caption)}.</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )
