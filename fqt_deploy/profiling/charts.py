"""The pictures of a report as Vega-Lite specifications; data are inline, and each describes itself in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fqt_deploy.profiling.kernel_classes import DIRECTIONS, class_of
from fqt_deploy.profiling.rows import Row, class_rows, layer_rows
from fqt_deploy.profiling.step_profile import StepProfile

Spec = dict[str, Any]
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_BAR = 14


def time_by_layer(profile: StepProfile) -> Spec:
    """Milliseconds of each layer as a bar, with its directions one after another."""
    rows = layer_rows(profile)
    values = [{"layer": row.layer, "direction": row.direction, "ms": 1e3 * row.seconds} for row in rows]
    encoding = {
        "y": _layer_axis(),
        "x": {"field": "ms", "type": "quantitative", "title": "ms in a step", "aggregate": "sum"},
        "color": _color("direction", DIRECTIONS),
        "tooltip": [{"field": name} for name in ("layer", "direction", "ms")],
    }
    told = f"Milliseconds in a step by layer and direction; {_most(rows)}"
    return _spec(told, values, "bar", encoding, height=_height(values, "layer"))


def speedup_by_layer(profile: StepProfile) -> Spec | None:
    """How many times as long PyTorch's fp32 takes, by layer and direction; None where it was not measured."""
    rows = [row for row in layer_rows(profile) if row.speedup is not None]
    if not rows:
        return None
    values = [{"layer": row.layer, "direction": row.direction, "speedup": row.speedup} for row in rows]
    encoding = {
        "y": _layer_axis(),
        "x": {"field": "speedup", "type": "quantitative", "title": "times as fast as PyTorch fp32"},
        "yOffset": {"field": "direction"},
        "color": _color("direction", DIRECTIONS),
        "tooltip": [{"field": name} for name in ("layer", "direction", "speedup")],
    }
    best = max(rows, key=lambda row: row.speedup or 0)
    largest = f"{best.speedup:.1f}, {best.layer} {best.direction}"
    told = f"Speedup over PyTorch fp32 by layer and direction; the largest is {largest}"
    spec = _spec(told, values, "bar", encoding, height=_height(values, "layer", bars=2))
    rule: Spec = {"data": {"values": [{"one": 1}]}, "mark": {"type": "rule", "strokeDash": [4, 3]}}
    rule["encoding"] = {"x": {"field": "one", "type": "quantitative"}}
    bars = {"data": spec.pop("data"), "mark": spec.pop("mark"), "encoding": spec.pop("encoding")}
    return {**spec, "layer": [bars, rule]}


def time_by_class(profile: StepProfile) -> Spec:
    """Milliseconds of each class of kernels, beside the least that the ceilings allow."""
    rows = class_rows(profile)
    values = [
        {"class": row.layer, "what": what, "ms": 1e3 * seconds}
        for row in rows
        for what, seconds in (("measured", row.seconds), ("roofline", row.roofline_s))
    ]
    encoding = {
        "y": {"field": "class", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 130}},
        "yOffset": {"field": "what"},
        "x": {"field": "ms", "type": "quantitative", "title": "ms in a step"},
        "color": _color("what"),
        "tooltip": [{"field": name} for name in ("class", "what", "ms")],
    }
    told = f"Milliseconds by class of kernels and the roofline of each; {_most(rows)}"
    return _spec(told, values, "bar", encoding, height=_height(values, "class", bars=2))


def roofline(profile: StepProfile) -> Spec:
    """Kernels by multiply-accumulates a byte and a second, under the machine's ceilings, on logarithmic axes."""
    points: list[Spec] = []
    for kernel, seconds in zip(profile.kernels, profile.seconds, strict=True):
        for kind, work in (("fp32", kernel.flops), ("1-bit", kernel.bit_ops)):
            if work and seconds > 0 and kernel.bytes_moved:
                points.append(
                    {
                        "kernel": f"{kernel.layer} {kernel.op}", "class": class_of(kernel.op), "kind": kind,
                        "intensity": work / 2 / kernel.bytes_moved, "rate": work / 2 / seconds / 1e9,
                    }
                )  # fmt: skip
    ceilings = profile.ceilings
    lines: list[Spec] = []
    low, high = 0.01, max((point["intensity"] for point in points), default=1.0) * 4
    for name, top in (("fp32 ceiling", ceilings.fp32_macs), ("1-bit ceiling", ceilings.bit_macs)):
        if top:
            for at in (low, top / ceilings.bytes, max(high, 2 * top / ceilings.bytes)):
                lines.append({"ceiling": name, "intensity": at, "rate": min(top, at * ceilings.bytes) / 1e9})
    logarithmic = {"type": "quantitative", "scale": {"type": "log"}, "axis": {"grid": False, "tickCount": 6}}
    x = {"field": "intensity", "title": "MACs a byte", **logarithmic}
    y = {"field": "rate", "title": "G MAC/s", **logarithmic}
    tooltip = [{"field": name} for name in ("kernel", "kind", "intensity", "rate")]
    spec = _spec(
        f"Roofline: {len(points)} kernels under {ceilings.fp32_macs / 1e9:.0f} G MAC/s in fp32, "
        f"{ceilings.bit_macs / 1e9:.0f} in 1 bit and {ceilings.bytes / 1e9:.1f} GB/s",
        [], "point", {}, height=280,
    )  # fmt: skip
    for name in ("data", "mark", "encoding"):
        del spec[name]
    dash = {"field": "ceiling", "type": "nominal", "title": None, "legend": _LEGEND}
    return {
        **spec,
        "layer": [
            {"data": {"values": lines}, "mark": {"type": "line"}, "encoding": {"x": x, "y": y, "strokeDash": dash}},
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "opacity": 0.7},
                "encoding": {"x": x, "y": y, "color": _color("class"), "tooltip": tooltip},
            },
        ],
    }


def memory_over_step(profile: StepProfile) -> Spec | None:
    """Megabytes of intermediate values that are alive at each kernel call; None where the artifact does not say."""
    if profile.notes is None:
        return None
    alive = profile.notes.alive(len(profile.kernels))
    values = [
        {"call": i, "MB": size / 1e6, "kernel": f"{kernel.layer} {kernel.op}"}
        for i, (size, kernel) in enumerate(zip(alive, profile.kernels, strict=True))
    ]
    encoding = {
        "x": {"field": "call", "type": "quantitative", "title": "kernel call", "scale": {"nice": False}},
        "y": {"field": "MB", "type": "quantitative", "title": "MB alive"},
        "tooltip": [{"field": name} for name in ("call", "kernel", "MB")],
    }
    peak = max(range(len(alive)), key=alive.__getitem__)
    at = f"{alive[peak] / 1e6:.1f} MB in call {peak}, {values[peak]['kernel']}"
    spec = _spec(
        f"Memory of intermediate values over the step; the peak is {at}", values,
        {"type": "area", "interpolate": "step-after"}, encoding, height=220,
    )  # fmt: skip
    area = {"data": spec.pop("data"), "mark": spec.pop("mark"), "encoding": spec.pop("encoding")}
    mark: Spec = {"data": {"values": [{"call": peak}]}, "mark": {"type": "rule", "strokeDash": [4, 3]}}
    mark["encoding"] = {"x": {"field": "call", "type": "quantitative"}}
    return {**spec, "layer": [area, mark]}


def statistics_over_steps(profile: StepProfile, column: str, title: str) -> Spec | None:
    """A line for each layer of one training statistic; None where it was not watched."""
    values = [
        {"step": row["step"], "layer": row["layer"], "value": row[column]}
        for row in profile.statistics
        if row.get(column) is not None
    ]
    if not values:
        return None
    encoding = {
        "x": {"field": "step", "type": "quantitative"},
        "y": {"field": "value", "type": "quantitative", "title": title},
        "color": {"field": "layer", "type": "nominal", "legend": None},
        "tooltip": [{"field": name} for name in ("step", "layer", "value")],
    }
    return _spec(
        f"{title} by step, a line for each layer", values, {"type": "line", "point": True}, encoding, height=200
    )


def steps_compared(profiles: Sequence[StepProfile]) -> Spec:
    """Milliseconds of each profile's step by class of kernels, and of PyTorch's steps."""
    values = [
        {"profile": profile.name, "class": row.layer, "ms": 1e3 * row.seconds}
        for profile in profiles
        for row in class_rows(profile)
    ]
    encoding = {
        "y": {"field": "profile", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 130}},
        "x": {"field": "ms", "type": "quantitative", "title": "ms in a step", "aggregate": "sum"},
        "color": _color("class"),
        "tooltip": [{"field": name} for name in ("profile", "class", "ms")],
    }
    told = "; ".join(f"{profile.name} {1e3 * profile.step_s:.1f} ms" for profile in profiles)
    return _spec(
        f"Milliseconds of a step by class: {told}", values, "bar", encoding, height=_height(values, "profile", bars=2)
    )


_LEGEND = {"orient": "bottom", "columns": 2, "labelLimit": 150}


def _height(values: Sequence[Spec], field: str, bars: int = 1) -> int:
    """Pixels for so many bars beside each other for each value of ``field``."""
    return _BAR * bars * max(2, len({value[field] for value in values}))


def _color(field: str, domain: Sequence[str] | None = None) -> Spec:
    """The encoding of ``field`` as a color, the same in every picture where the domain is given."""
    scale = {} if domain is None else {"scale": {"domain": list(domain)}}
    return {"field": field, "type": "nominal", "title": None, "legend": _LEGEND, **scale}


def _layer_axis() -> Spec:
    axis = {"labelLimit": 130, "labelOverlap": False}
    return {"field": "layer", "type": "nominal", "sort": None, "title": None, "axis": axis}


def _most(rows: Sequence[Row]) -> str:
    most = max(rows, key=lambda row: row.seconds)
    return f"most is {most.layer} {most.direction}".rstrip() + f" with {1e3 * most.seconds:.2f} ms"


def _spec(told: str, values: list[Spec], mark: Any, encoding: Spec, *, height: int) -> Spec:
    return {
        "$schema": _SCHEMA,
        "description": told,
        "width": "container",
        "height": height,
        "data": {"values": values},
        "mark": mark,
        "encoding": encoding,
    }
