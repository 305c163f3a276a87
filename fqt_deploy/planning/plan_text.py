"""A plan as text for a terminal, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

from fqt_deploy.planning.choices import told
from fqt_deploy.planning.plan import ALL_FP32, ASKED, CHOSEN, WITHIN, Plan, Point
from fqt_deploy.profiling.tables import aligned

SHOWN = 12
"""The most plans of a frontier that are shown."""


def plan_text(plan: Plan) -> str:
    """The measurements, the frontier, and how the plan turned out, for a terminal."""
    return "\n\n".join(
        [
            f"milliseconds / noise of each layer, by choice\n{_layers(plan)}",
            f"the frontier, predicted\n{_frontier(plan)}",
            *([f"gradients of all layers, in the chosen step\n{_gradients(plan)}"] if plan.gradients else []),
            "\n".join(verdict(plan)),
        ]
    )


def verdict(plan: Plan) -> list[str]:
    """How the chosen plan turned out beside the step that was asked for, in sentences; doubts come first."""
    seconds, noise = plan.measured, plan.measured_noise
    ratio = seconds[CHOSEN] / seconds[ASKED]
    lines = [f"warning: {doubt}" for doubt in plan.doubts]
    lines.append(
        f"the step takes {ms(seconds[CHOSEN])} ms, {ms(plan.chosen.seconds)} predicted: {ratio:.2f} of the "
        f"{ms(seconds[ASKED])} ms asked for; all of these layers in fp32, {ms(seconds[ALL_FP32])} ms, "
        f"{seconds[ALL_FP32] / seconds[CHOSEN]:.1f} times as long"
    )
    lines.append(
        f"its noise is {noise[CHOSEN]:.3f}, {plan.chosen.noise:.3f} predicted, of the step asked for {noise[ASKED]:.3f}"
    )
    if not any(plan.chosen.choices):
        lines.append("no layer of the plan runs in 1 bit: its gradients are not quantized")
    if plan.chosen.choices == plan.asked.choices:
        lines.append("the step asked for is the best one under this budget")
    elif plan.budget.time is not None and ratio > WITHIN * plan.budget.time:
        lines.append(f"no plan was found that keeps within {plan.budget.time:g} of the time when it is measured")
    return lines


def plan_json(plan: Plan) -> str:
    """The plan as JSON, times in seconds."""

    def point(each: Point) -> dict[str, object]:
        return {**dataclasses.asdict(each), "choices": [*map(told, each.choices)]}

    found = {
        "name": plan.name,
        "machine": dataclasses.asdict(plan.machine),
        "batch": plan.batch,
        "budget": dataclasses.asdict(plan.budget),
        "layers": [
            {
                "path": layer.path,
                "seconds": {told(choice): layer.seconds[choice] for choice in plan.offered},
                "noise": {told(choice): layer.noise[choice] for choice in plan.offered},
            }
            for layer in plan.layers
        ],
        "frontier": [point(each) for each in plan.frontier],
        "asked": point(plan.asked),
        "chosen": point(plan.chosen),
        "measured_s": dict(plan.measured),
        "measured_noise": dict(plan.measured_noise),
        "gradients": [dataclasses.asdict(each) for each in plan.gradients],
        "doubts": plan.doubts,
    }
    return json.dumps(found, indent=1)


def _layers(plan: Plan) -> str:
    header = ("layer", *(f">{told(choice)}" for choice in plan.offered), "asked for", "chosen")
    rows = [
        (
            layer.path,
            *(f"{ms(layer.seconds[choice])} / {layer.noise[choice]:.3f}" for choice in plan.offered),
            told(asked),
            told(chosen),
        )
        for layer, asked, chosen in zip(plan.layers, plan.asked.choices, plan.chosen.choices, strict=True)
    ]
    return aligned(header, rows)


def _frontier(plan: Plan) -> str:
    header = (">ms", ">of the time", ">noise", *(f">{told(choice)}" for choice in plan.offered), "")
    points = shown_points(plan)
    rows = []
    for point in points:
        counts = Counter(point.choices)
        marks = [name for name, other in ((ASKED, plan.asked), (CHOSEN, plan.chosen)) if point == other]
        numbers = (str(counts[choice] or "") for choice in plan.offered)
        share = f"{point.seconds / plan.asked.seconds:.2f}"
        rows.append((ms(point.seconds), share, f"{point.noise:.3f}", *numbers, ", ".join(marks)))
    return aligned(header, rows)


def _gradients(plan: Plan) -> str:
    asked = next(each.seconds for each in plan.gradients if each.bits == plan.gradient_bits)
    rows = [
        (
            f"{each.bits} bit{'s' if each.bits > 1 else ''}",
            f"{each.seconds / asked:.2f}",
            f"{each.noise:.3f}",
            "asked for" if each.bits == plan.gradient_bits else "",
        )
        for each in plan.gradients
    ]
    return aligned(("bits", ">of the time", ">noise", ""), rows)


def shown_points(plan: Plan) -> list[Point]:
    """Some points of the frontier at even distances in time, with the chosen one and the one asked for, by time."""
    first, last = plan.frontier[0].seconds, plan.frontier[-1].seconds
    wanted = [first + (last - first) * i / (SHOWN - 1) for i in range(SHOWN)]
    shown = [min(plan.frontier, key=lambda point: abs(point.seconds - at)) for at in wanted]
    shown += [plan.chosen, plan.asked]
    unique = {(point.choices, point.seconds): point for point in shown}
    return sorted(unique.values(), key=lambda point: (point.seconds, -point.noise))


def ms(seconds: float) -> str:
    """The time in milliseconds, without the unit."""
    return f"{1e3 * seconds:.2f}"
