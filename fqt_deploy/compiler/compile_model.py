"""Compilation of one model: the only place that knows the order of the stages."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.capture.capture_model import capture_model, user_code
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen.build import build_library, find_linker
from fqt_deploy.codegen.to_relax import RelaxProgram, to_relax
from fqt_deploy.codegen.tune_tiles import check_can_tune, tune_tiles
from fqt_deploy.compiler.buckets import check_same_step, same_decisions, shared_state
from fqt_deploy.compiler.check_synchronized import check_synchronized
from fqt_deploy.compiler.describe import describe
from fqt_deploy.compiler.kernel_runner import kernel_runner
from fqt_deploy.compiler.verify import VerificationReport, verify_numerics
from fqt_deploy.compiler.verify_passes import PassCheck, PassVerifier, graph_inputs
from fqt_deploy.compiler.whole_weights import taken_whole
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import ActivationGrid, TrainingGraph, grids_of
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.core.one_compilation import one_at_a_time
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.step_notes import NOTES, StepNotes
from fqt_deploy.core.text import SUFFIX, graph_text
from fqt_deploy.core.user_cache import default_log
from fqt_deploy.packaging.runtime_libraries import runtime_libraries
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.pass_base import Pass, Pipeline
from fqt_deploy.passes.pipelines import all_passes, prediction_passes, training_passes
from fqt_deploy.passes.split_weight_planes import SplitWeightPlanes
from fqt_deploy.runtime.artifact import write_artifact
from fqt_deploy.runtime.threads import configure_threads
from fqt_deploy.targets.base import Target
from fqt_deploy.targets.registry import make_target
from fqt_deploy.targets.tuning_log import append_tiles, read_tiles

Progress = Callable[[str], None]
"""A function that is told the name of each phase as it begins."""


@dataclass(frozen=True)
class CompileResult:
    """The result of a compilation.

    Attributes:
        manifest: manifest of the artifact, as written.
        output: the artifact's folder.
        pass_times: seconds by pass of the training graph, in order.
        verification: kernels and passes against PyTorch, when ``verify`` is ``numerics``.
    """

    manifest: Manifest
    output: Path
    pass_times: tuple[tuple[str, float], ...]
    verification: VerificationReport | None


@dataclass(frozen=True)
class LoweredModel:
    """Both graphs of a model, ready for code generation.

    Attributes:
        train: the training step.
        predict: the evaluation graph.
        pass_times: seconds by pass of the training graph.
        pass_checks: what exact passes did to the numbers, when ``verify`` is ``numerics``.
        others: the same for other shapes of batches, on the same state.
    """

    train: TrainingGraph
    predict: TrainingGraph
    pass_times: tuple[tuple[str, float], ...]
    pass_checks: tuple[PassCheck, ...] = ()
    others: tuple[LoweredModel, ...] = ()

    def graphs(self) -> list[tuple[TrainingGraph, TrainingGraph]]:
        """The training step and the prediction for every shape of batches."""
        return [(one.train, one.predict) for one in (self, *self.others)]


@one_at_a_time
def compile_model(
    source: ModelSource,
    options: CompileOptions,
    output: Path,
    *,
    progress: Progress | None = None,
    lowered: LoweredModel | None = None,
) -> CompileResult:
    """Compile ``source`` and write the artifact ``output``, whole or not at all.

    Args:
        source: model, loss and example inputs.
        options: how to compile.
        output: folder to write; an artifact that is there is replaced.
        progress: told the phases.
        lowered: what ``lower_model`` made of ``source`` and ``options``, if it was called already.

    Raises:
        FqtError: for everything that the user can mend; ``InvariantError`` for a bug of ours.
    """
    tell = progress or (lambda _: None)
    target = check_can_compile(options)
    if source.others and target.name == "cuda":
        raise FqtError(
            "steps for several shapes of batches are compiled for CPUs only", code="FQT202", hint="choose one --batch"
        )
    if options.distributed != "off" and target.name == "cuda":
        raise FqtError(
            "steps for several processes are compiled for CPUs only",
            code="FQT202",
            hint="leave --distributed out, or choose --target cpu",
        )
    companions = {**runtime_libraries(target.toolchain).companions(), **target.companions()}
    lowered = lowered or lower_model(source, options, progress=tell, whole=True)
    tell("generating kernels")
    with user_code(source):
        program = to_relax(lowered.train, lowered.predict, lowered.graphs()[1:])
    if options.tune:
        target = _tuned(program, target, options, tell)
    tell("compiling kernels")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "step.so"
        build_library(program, target, library, codes=options.distributed == "4-bit")
        report = _verify(source, options, lowered, program, library, target, tell)
        manifest = describe(source, options, lowered.graphs(), program, target)
        notes = Path(folder) / NOTES
        notes.write_bytes(_notes(program).to_json())
        write_artifact(output, manifest, initial_state(*lowered.graphs()), library, {**companions, NOTES: notes})
    return CompileResult(manifest, output, lowered.pass_times, report)


def _notes(program: RelaxProgram) -> StepNotes:
    """What the artifact says about the memory and the pruning of the step."""
    values = tuple((life.size, life.first, life.last) for life in program.values)
    kept: dict[str, float] = {}
    for info, kernel in zip(program.kernels, program.calls, strict=True):
        if info.op.startswith("select_"):
            index, slot, _ = kernel.root.meta["val"]  # [kept] and [groups]: see ops/lib/selection.py
            kept[info.layer] = kept.get(info.layer, 1.0) * index.shape[0] / slot.shape[0]
    return StepNotes((program.memory.size,), values, kept)


def check_can_compile(options: CompileOptions) -> Target:
    """The target; an error if it is unknown or a tool is missing: said before the work, not after it."""
    target = make_target(options.target, options.target_options)
    target = target.with_tiles(read_tiles(options.tuning_log or default_log()))
    if options.tune:
        check_can_tune(target)
    find_linker(target.toolchain)
    if options.verify == "numerics":
        target.toolchain.runner()
        target.device()
    runtime_libraries(target.toolchain)
    return target


def _tuned(program: RelaxProgram, target: Target, options: CompileOptions, tell: Progress) -> Target:
    """The target with the best tiles for ``program``, which the tuning log has from now on."""
    tiles = tune_tiles(program, target, configure_threads(), tell)
    append_tiles(options.tuning_log or default_log(), tiles)
    return target.with_tiles(tiles)


def initial_state(*graphs: tuple[TrainingGraph, TrainingGraph]) -> dict[str, NDArray[Any]]:
    """The state before the first step, by name, of training steps that share it; predictions beside them add none."""
    state = shared_state([train for train, _ in graphs])
    return {name: np.array(tensor.initial.detach().numpy(), order="C") for name, tensor in state.items()}


@one_at_a_time
def lower_model(
    source: ModelSource,
    options: CompileOptions,
    *,
    passes: tuple[Pass, ...] | None = None,
    grids: Mapping[str, ActivationGrid] | None = None,
    progress: Progress | None = None,
    whole: bool = False,
) -> LoweredModel:
    """Capture ``source`` and run all passes on both of its graphs.

    Args:
        source: model, loss and example inputs.
        options: how to compile.
        passes: the passes for the training graph; by default those that the options ask for.
        grids: of activations, by the name of their layer's weight, as an earlier step of the same model has them; by
            default the example batch says.
        progress: told the phases.
        whole: whether products with weights of several bits stay whole where the target has a form for them, as
            ``compile_model`` takes them; else all are split into products of signs, as ONNX has them.
    """
    tell = progress or (lambda _: None)
    first = _lower(source, options, passes, grids, tell, whole)
    if not source.others:
        return first
    same = same_decisions(options, first.train)
    others = [_lower(other, same, passes, grids_of(first.train.layers), tell, whole) for other in source.others]
    for other in others:
        check_same_step(first.train, other.train)
    return dataclasses.replace(first, others=tuple(others))


def _lower(
    source: ModelSource,
    options: CompileOptions,
    passes: tuple[Pass, ...] | None,
    grids: Mapping[str, ActivationGrid] | None,
    tell: Progress,
    whole: bool,
) -> LoweredModel:
    """Capture ``source`` without its other shapes, and run all passes."""
    _check_pass_names(options)
    check_synchronized(source.module, options)
    with user_code(source):
        tell("capturing the training step")
        train, predict = capture_model(source, options.prediction)
        tell("running passes")
        times: list[tuple[str, float]] = []
        invariants = () if options.verify == "off" else ALWAYS
        _dump(options.dump_ir, 0, "captured", train)

        def observe(name: str, graph: TrainingGraph, seconds: float) -> None:
            times.append((name, seconds))
            _dump(options.dump_ir, len(times), name, graph)
            if name in options.print_after:
                print(f"# after {name}\n{graph_text(graph)}")  # what the option asks for

        passes = passes or training_passes(options, grids)
        verifier = _pass_verifier(source, options, train, passes)
        observers = (observe,) if verifier is None else (observe, verifier.observe)
        Pipeline(passes, invariants, observers).run(train)
        Pipeline(prediction_passes(train.layers), invariants).run(predict)
        if any(record.weight_bits > 1 for record in train.layers):
            for graph, told in ((train, observers), (predict, ())):
                split = SplitWeightPlanes(taken_whole(graph, options) if whole else ())
                Pipeline((split,), invariants, told).run(graph)
    return LoweredModel(train, predict, tuple(times), tuple(verifier.checks) if verifier is not None else ())


def _pass_verifier(
    source: ModelSource, options: CompileOptions, graph: TrainingGraph, passes: tuple[Pass, ...]
) -> PassVerifier | None:
    if options.verify != "numerics":
        return None
    verifier = PassVerifier(frozenset(p.name for p in passes if p.exact), graph_inputs(graph, source, options))
    verifier.start(graph)
    verifier.check_capture(source)
    return verifier


def _verify(
    source: ModelSource,
    options: CompileOptions,
    lowered: LoweredModel,
    program: RelaxProgram,
    library: Path,
    target: Target,
    tell: Progress,
) -> VerificationReport | None:
    if options.verify != "numerics":
        return None
    toolchain = target.toolchain
    tell("comparing every kernel with PyTorch" + ("" if toolchain.is_native else f", under {toolchain.emulator}"))
    with kernel_runner(library, toolchain, target.device()) as runner:
        reports = [
            verify_numerics(one.train, variant, runner, own.example_inputs, options)
            for one, own, variant in zip(
                (lowered, *lowered.others), (source, *source.others), program.variants(), strict=True
            )
        ]
    rows = tuple(row for report in reports for row in report.rows)
    checks = tuple(check for one in (lowered, *lowered.others) for check in one.pass_checks)
    return VerificationReport(rows, checks)


def _dump(folder: Path | None, position: int, name: str, graph: TrainingGraph) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{position:02d}-{name}{SUFFIX}").write_text(graph_text(graph))
    except OSError as error:
        raise FqtError(f"cannot write to {folder}: {error.strerror}", code="FQT508") from None


def _check_pass_names(options: CompileOptions) -> None:
    known: list[Pass] = list(all_passes())
    for name in options.print_after:
        if name not in {p.name for p in known}:
            raise FqtError(
                f"there is no pass {name!r}",
                code="FQT206",
                hint=f"passes: {', '.join(dict.fromkeys(p.name for p in known))}",
            )
