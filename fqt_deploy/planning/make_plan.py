"""The making of a plan: steps are built and measured, and the best mixture under a budget is chosen and verified."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from fqt_deploy.build_cache.build_artifact import build_artifact
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_bits import ACTIVATION_BITS
from fqt_deploy.core.manifest import LayerDecision, Manifest
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.planning.choices import CHOICES, Choice, options_for, told
from fqt_deploy.planning.choose import Pick, frontier, least_noise, least_time, unbeaten
from fqt_deploy.planning.gradient_noise import DRAWS, PROBE, gradient_noise, gradients_of
from fqt_deploy.planning.layer_noise import NoiseMeter, noise_of_choices
from fqt_deploy.planning.plan import ALL_FP32, ASKED, CHOSEN, WITHIN, Budget, GradientBits, Plan, PlannedLayer, Point
from fqt_deploy.planning.step_times import StepTime, change, time_steps
from fqt_deploy.profiling.machine import this_machine
from fqt_deploy.runtime.artifact import MANIFEST
from fqt_deploy.runtime.threads import configure_threads
from fqt_deploy.targets.registry import make_target

Tell = Callable[[str], None]
ATTEMPTS = 3
"""How often a plan is chosen again that takes longer than predicted."""
RECIPES_WITH_BITS = ("scq+agp", "scq")
"""Recipes that leave the bits of gradients to choose."""


def make_plan(
    source: ModelSource,
    options: CompileOptions,
    budget: Budget,
    *,
    bits: Collection[int] = ACTIVATION_BITS,
    gradient_bits: Collection[int] = (),
    progress: Tell | None = None,
) -> Plan:
    """Measure fp32 and every number of bits for the layers that ``options`` run in 1 bit, and choose.

    Args:
        source: the model with the weights that training starts from, and a batch that is like the data.
        options: how it is to be compiled; what they say of layers is what the plan is compared with.
        budget: the bound.
        bits: of an activation, that are measured besides those that ``options`` ask for.
        gradient_bits: of a gradient, with which the chosen step is measured besides those that ``options`` ask for;
            none for no such measurement.
        progress: told the phases.

    Raises:
        FqtError: as ``compile_model``; FQT402 or FQT202 for a target that this machine cannot time; FQT202 if no layer
            runs in 1 bit, weights have different widths, no plan keeps within the budget, or the recipe fixes the bits
            of gradients.
    """
    _check_can_time(options)
    if others := [each.pattern for each in options.bits if each.weights != options.weight_bits]:
        raise FqtError(
            f"--plan chooses bits of activations; the weights of all layers have {options.weight_bits}, but "
            f"{others[0]!r} has others",
            code="FQT202",
            hint="give the weights of --bits as many bits as --weight-bits, or write a plan by hand",
        )
    if gradient_bits and options.recipe not in RECIPES_WITH_BITS:
        raise FqtError(
            f"with recipe {options.recipe} gradients have no bits to choose",
            code="FQT202",
            hint=f"leave out --plan-grad-bits, or choose --recipe {' or '.join(RECIPES_WITH_BITS)}",
        )
    tell = progress or (lambda _: None)
    source = dataclasses.replace(source, others=())
    options = dataclasses.replace(options, dump_ir=None, print_after=(), time_passes=False, verify="structure")
    with tempfile.TemporaryDirectory(prefix="fqt-plan-") as folder:
        return _Planner(source, options, Path(folder), tell).plan(budget, bits, gradient_bits)


def _check_can_time(options: CompileOptions) -> None:
    target = make_target(options.target, options.target_options)
    if not target.toolchain.is_native:
        raise FqtError(
            f"code for {target.toolchain.arch} cannot be timed on this machine",
            code="FQT402",
            hint="plan on the device; the plan may then be used here",
        )
    if target.name != "cpu":
        raise FqtError(
            f"--plan times steps for the CPU, not for {target.name}", code="FQT202", hint="write a plan by hand"
        )


class _Planner:
    """Builds steps into a folder, and measures them."""

    def __init__(self, source: ModelSource, options: CompileOptions, folder: Path, tell: Tell) -> None:
        self._source, self._options, self._folder, self._tell = source, options, folder, tell
        self._built: dict[tuple[tuple[str, Choice], ...], Path] = {}

    def plan(self, budget: Budget, bits: Collection[int], gradient_bits: Collection[int]) -> Plan:
        decisions = self._decisions()
        asked: dict[str, Choice] = {
            layer.path: layer.activation_bits for layer in decisions if layer.decision == "1-bit"
        }
        if not asked:
            raise FqtError(
                f"no layer of {self._source.name} runs in 1 bit: there is nothing to plan",
                code="FQT202",
                hint="--check says why; --include GLOB chooses layers",
            )
        self._built[tuple(asked.items())] = self._folder / ASKED
        offered = tuple(each for each in CHOICES if each is None or each in bits or each in asked.values())
        seconds, base, cores = self._seconds(asked, offered)
        noises, meter = self._noises(offered)
        layers = tuple(PlannedLayer(path, seconds[path], noises[path]) for path in asked)
        points, start = _points(layers, asked, base)
        chosen, measured, busy = self._verified_choice(points, start, [*asked], budget)
        by_path = dict(zip(asked, chosen.choices, strict=True))
        self._tell("measuring the noise of the plan")
        return Plan(
            name=self._source.name,
            machine=this_machine(configure_threads()),
            batch=self._source.call.batch,
            offered=offered,
            budget=budget,
            layers=layers,
            frontier=points,
            asked=start,
            chosen=chosen,
            measured=measured,
            measured_noise={ASKED: meter.noise(asked), CHOSEN: meter.noise(by_path)},
            include=self._options.include,
            excluded=tuple(layer.path for layer in decisions if layer.reason.startswith("excluded by")),
            other_cores=max((each for each in (cores, busy) if each is not None), default=None),
            gradients=self._gradients(by_path, gradient_bits),
            gradient_bits=self._gradient_bits(),
            weight_bits=self._options.weight_bits,
        )

    def _decisions(self) -> Sequence[LayerDecision]:
        """The decisions of the step that the options ask for."""
        return build_artifact(
            self._source, self._options, self._folder / ASKED, progress=_behind(self._tell, "the step asked for")
        ).manifest.layers

    def _noises(self, offered: Sequence[Choice]) -> tuple[dict[str, dict[Choice, float]], NoiseMeter]:
        self._tell("measuring noise: the forward pass in fp32")
        meter = NoiseMeter(self._source, self._options)
        found = {}
        for number, record in enumerate(meter.layers, start=1):
            self._tell(f"measuring noise of layer {number} of {len(meter.layers)}")
            found[record.path] = noise_of_choices(meter, record.path, offered)
        return found, meter

    def _seconds(
        self, asked: Mapping[str, Choice], offered: Sequence[Choice]
    ) -> tuple[dict[str, dict[Choice, float]], float, float | None]:
        """Seconds of each layer by choice, seconds of the step asked for, and how busy the machine was.

        A choice is measured in all layers at once, but fp32 in every other layer: a layer in fp32 among others in 1 bit
        works backward on the samples that these keep.
        """
        paths = [*asked]
        variants: dict[str, dict[str, Choice]] = {}
        for choice in offered:
            for part in (paths[::2], paths[1::2]) if choice is None else (paths,):
                changed = [path for path in part if asked[path] != choice]
                if changed:
                    variants[f"{told(choice)} of {part[0]}"] = dict.fromkeys(changed, choice)
        built = {ASKED: self._artifact(asked, "the step asked for")}
        for number, (name, changes) in enumerate(variants.items(), start=1):
            built[name] = self._artifact({**asked, **changes}, f"step {number} of {len(variants)} to measure")
        times = time_steps(built, self._tell)
        base = times.steps[ASKED]
        own = _own_seconds(base, paths)
        found: dict[str, dict[Choice, float]] = {path: {asked[path]: own[path]} for path in paths}
        for name, changes in variants.items():
            for path, more in change(times.steps[name], base, paths, [*changes]).items():
                found[path][changes[path]] = max(0.0, own[path] + more)
        return found, base.seconds, times.other_cores

    def _verified_choice(
        self, points: Sequence[Point], asked: Point, paths: Sequence[str], budget: Budget
    ) -> tuple[Point, dict[str, float], float | None]:
        """The plan under the budget, with what its step takes; a tighter one where that is more than predicted.

        Layers are not quite independent: one in fp32 behind all others in 1 bit works on all samples in backward.
        """
        now = dict(zip(paths, asked.choices, strict=True))
        chosen = _chosen(points, asked, budget)
        measured, busy = self._verified(now, dict(zip(paths, chosen.choices, strict=True)))
        bound = budget.time
        for _ in range(ATTEMPTS - 1):
            if bound is None or budget.time is None or chosen.choices == asked.choices:
                break
            over = measured[CHOSEN] / measured[ASKED] / budget.time
            bound /= over
            fitting = least_noise(_picks(points), bound * asked.seconds)
            if over <= WITHIN or fitting is None or points[fitting.choices[0]] == chosen:
                break
            chosen = points[fitting.choices[0]]
            measured, busy = self._verified(now, dict(zip(paths, chosen.choices, strict=True)))
        return chosen, measured, busy

    def _gradient_bits(self) -> int:
        """Bits of a gradient in the step that the options ask for."""
        return int(Manifest.from_json((self._folder / ASKED / MANIFEST).read_bytes()).options["grad_bits"])

    def _verified(
        self, asked: Mapping[str, Choice], chosen: Mapping[str, Choice]
    ) -> tuple[dict[str, float], float | None]:
        steps = {ASKED: asked, CHOSEN: chosen, ALL_FP32: dict.fromkeys(asked)}
        built = {name: self._artifact(choices, f"the step: {name}") for name, choices in steps.items()}
        times = time_steps(built, self._tell)
        return {name: times.steps[name].seconds for name in steps}, times.other_cores

    def _gradients(self, chosen: Mapping[str, Choice], bits: Collection[int]) -> tuple[GradientBits, ...]:
        """Time and gradient noise of the chosen step by bits of a gradient."""
        if not bits or all(choice is None for choice in chosen.values()):
            return ()
        options = dataclasses.replace(options_for(self._options, chosen), optimizer=PROBE)
        wanted = sorted({*bits, self._gradient_bits()})
        built: dict[str, Path] = {}
        for number in wanted:
            built[str(number)] = self._folder / f"gradients{number}"
            what = f"the step with gradients of {number} bits"
            grid = options.grid if number > 1 else "minmax"
            own = dataclasses.replace(options, grad_bits=number, grid=grid)  # type: ignore[arg-type]
            build_artifact(self._source, own, built[str(number)], progress=_behind(self._tell, what))
        exact = self._folder / "gradients"
        own = dataclasses.replace(options, recipe="none")
        build_artifact(self._source, own, exact, progress=_behind(self._tell, "the step with gradients in fp32"))
        expected = next(gradients_of(exact, self._source, 1))
        times = time_steps(built, self._tell)
        found = []
        for number in wanted:
            draws = gradients_of(built[str(number)], self._source, DRAWS)
            found.append(GradientBits(number, times.steps[str(number)].seconds, *gradient_noise(expected, draws)))
        return tuple(found)

    def _artifact(self, choices: Mapping[str, Choice], what: str) -> Path:
        key = tuple(choices.items())
        if key not in self._built:
            folder = self._folder / f"step{len(self._built)}"
            build_artifact(
                self._source, options_for(self._options, choices), folder, progress=_behind(self._tell, what)
            )
            self._built[key] = folder
        return self._built[key]


def _behind(tell: Tell, what: str) -> Tell:
    return lambda phase: tell(f"{what}: {phase}")


def _own_seconds(step: StepTime, layers: Sequence[str]) -> dict[str, float]:
    """Seconds of each layer's kernels, and of half of what lies between it and its neighbours."""
    seconds = dict.fromkeys(layers, 0.0)
    for place, spent in step.places(layers).items():
        for path in place:
            seconds[path] += spent / len(place)
    return seconds


def _points(
    layers: Sequence[PlannedLayer], asked: Mapping[str, Choice], base: float
) -> tuple[tuple[Point, ...], Point]:
    """The frontier, and the step that was asked for, whose seconds are ``base``."""
    offered = [*layers[0].noise]
    now = [offered.index(asked[layer.path]) for layer in layers]
    times = [[layer.seconds[choice] for choice in offered] for layer in layers]
    noises = [[layer.noise[choice] for choice in offered] for layer in layers]
    spent = sum(each[number] for each, number in zip(times, now, strict=True))

    def point(pick: Pick) -> Point:
        return Point(tuple(offered[number] for number in pick.choices), base + pick.time - spent, pick.noise)

    start = Pick(spent, sum(each[number] for each, number in zip(noises, now, strict=True)), tuple(now))
    # In the frontier another pick may stand for it that takes as long but for rounding, and a bound is exact.
    picks = unbeaten([*frontier(times, noises), start])
    return tuple(map(point, picks)), point(start)


def _picks(points: Sequence[Point]) -> list[Pick]:
    """The points, each as a pick of its own number."""
    return [Pick(point.seconds, point.noise, (number,)) for number, point in enumerate(points)]


def _chosen(points: Sequence[Point], asked: Point, budget: Budget) -> Point:
    """The best plan under the budget; FQT202 if none keeps within it."""
    picks = _picks(points)
    if budget.time is not None:
        best = least_noise(picks, budget.time * asked.seconds)
        bound, least = f"{budget.time:g} of the time", min(point.seconds for point in points) / asked.seconds
    else:
        assert budget.noise is not None
        best = least_time(picks, budget.noise * asked.noise)
        bound = f"{budget.noise:g} of the noise"
        least = min(point.noise for point in points) / asked.noise if asked.noise else 1.0
    if best is None:
        raise FqtError(
            f"no plan keeps within {bound} of the step that the options ask for: the least is {least:.2f}",
            code="FQT202",
            hint=f"give at least {least + 0.005:.2f}",
        )
    return points[best.choices[0]]
