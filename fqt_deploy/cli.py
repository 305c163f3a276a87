"""The command fqt-compile: from a model file to a compiled training step.

Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage, 70 a bug of ours.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqt_deploy import __version__
from fqt_deploy.cli_options import COMMAND_OPTIONS, SUFFIXES, CommandOptions
from fqt_deploy.command_line import SectionedCommand, given_options, with_flags
from fqt_deploy.core.compiler_extra import require_compiler
from fqt_deploy.core.diagnostics import FqtError, InvariantError
from fqt_deploy.core.onnx_names import step_files
from fqt_deploy.runtime.artifact import check_replaceable
from fqt_deploy.settings import all_settings, merge_settings, options_of

if TYPE_CHECKING:
    from rich.console import Console

    from fqt_deploy.build_cache.build_artifact import Build
    from fqt_deploy.capture.load_model import ModelSource
    from fqt_deploy.core.options import CompileOptions

EXIT_ERROR = 1
EXIT_BUG = 70

EXAMPLES = """
\b
Examples:
  fqt-compile model.py                                  for this machine, into model.fqt
  fqt-compile model.py --check                          what runs in 1 bit, what cannot be compiled; in seconds
  fqt-compile model.py --recipe none -o fp32grad.fqt    1-bit forward, fp32 gradients
  fqt-compile model.py --grad-bits 2 --agp once         another gradient width and selection
  fqt-compile model.py --weights w.safetensors --optimizer sgd --lr 0.01 --momentum 0.9
  fqt-compile model.py --mcpu x86-64-v3 --exclude 'head.*' --verify numerics
  fqt-compile model.py --target cuda --arch sm_90a      for an H100; needs no GPU here
  fqt-compile model.py --profile                        time it, layer by layer, beside PyTorch
  fqt-compile model.py --plan --plan-time 0.8           choose bits by layer, measured; then --plan-file
  fqt-compile model.py --tune                           measure tiles of 1-bit products here first
  fqt-compile model.py --target rpi5                    for a Raspberry Pi 5, on a PC
  fqt-compile model.py --emit onnx --emit onnx-infer    model.onnx and model.infer.onnx, for ONNX Runtime
  fqt-compile model.py --emit onnx-step                 for ONNX Runtime in a browser, in Node, anywhere

\b
MODEL.py defines
  build_model()        -> torch.nn.Module
  example_inputs()     -> (inputs, targets), one batch
  loss_fn(outputs, targets) -> scalar       optional; default: the model's own loss, or cross-entropy
  compile_options()    -> dict              optional; settings such as {'agp': 'once', 'lr': 0.01}
"""


def _list_passes() -> None:
    from fqt_deploy.passes.pass_names import options_text
    from fqt_deploy.passes.pipelines import all_passes

    places: dict[str, list[str]] = {}
    for place, compiler_pass in enumerate(all_passes(), start=1):
        places.setdefault(compiler_pass.name, []).append(str(place))
    click.echo(f"{'place':7}{'pass':22}what it does")
    for name, compiler_pass in {p.name: p for p in all_passes()}.items():
        click.echo(f"{', '.join(places[name]):7}{name:22}{_summary(compiler_pass)}")
        if options := options_text(type(compiler_pass)):
            click.echo(f"{'':29}options: {options}")


def _list_ops() -> None:
    import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
    from fqt_deploy.ops.aten.aten_op import aten_ops
    from fqt_deploy.ops.op import FQT_OPS

    for name, op in sorted(FQT_OPS.items()):
        click.echo(f"fqt.{name:36} {op.traits.kind.value:12} {_summary(op)}")
    for target, aten in sorted(aten_ops().items(), key=lambda item: str(item[0])):
        click.echo(f"{target!s:40} {aten.traits.kind.value:12} {', '.join(aten.honoured())}")


def _list_targets() -> None:
    from fqt_deploy.targets.registry import TARGETS

    for name in TARGETS:
        click.echo(name)


def _fetch_runtime(arch: str) -> None:
    from fqt_deploy.packaging.runtime_libraries import fetch

    click.echo(fetch(arch))


def _summary(documented: object) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0].replace("``", "`")


def _instead(name: str, action: Callable[..., None], text: str, **settings: Any) -> Callable[..., Any]:
    """An option that does something else than compiling; ``action`` takes its value, a flag's takes none."""

    def callback(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value and not context.resilient_parsing:
            with exit_codes():
                require_compiler()
                action() if value is True else action(value)
            context.exit()

    return click.option(name, is_eager=True, expose_value=False, callback=callback, help=text, **settings)


@with_flags([*COMMAND_OPTIONS.values(), *all_settings().values()])
@click.command(cls=SectionedCommand, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.py")
@_instead(
    "--list-passes", _list_passes, "List the compiler passes with their places in the pipeline, and exit.", is_flag=True
)
@_instead("--list-ops", _list_ops, "List the ops and exit.", is_flag=True)
@_instead("--list-targets", _list_targets, "List the targets and exit.", is_flag=True)
@_instead(
    "--fetch-runtime",
    _fetch_runtime,
    "Download TVM's runtime libraries for another kind of machine from PyPI, once, and exit.",
    type=click.Choice(["aarch64", "x86_64"]),
)
@click.version_option(__version__)
def main(model: Path, **given: Any) -> None:
    """Compile the PyTorch model in MODEL.py into a 1-bit training step that runs without PyTorch."""
    # Nearly all objects live as long as the process: looking for garbage among them would be a tenth of the time.
    gc.set_threshold(100_000, 20, 100)
    atexit.register(gc.freeze)
    with exit_codes():
        command = CommandOptions(**given_options(COMMAND_OPTIONS.values(), given))
        settings = given_options(all_settings().values(), given)
        require_compiler()
        if command.passes is not None:
            _run_passes(model, command, given)
        elif command.check:
            _check(model, command, settings)
        elif command.plan:
            _plan(model, command, settings)
        else:
            _compile(model, _outputs(Path(model.stem), command.output, command.emit), command, settings)


def _run_passes(model: Path, command: CommandOptions, given: dict[str, Any]) -> None:
    beside = [name for name, value in given.items() if value not in (None, (), False)]
    if others := [name for name in beside if name not in ("passes", "output", "batch")]:
        hint = "options of passes are given with their names; --list-passes shows them"
        raise FqtError(f"--{others[0].replace('_', '-')} has no effect beside --passes", code="FQT202", hint=hint)
    from fqt_deploy.compiler.run_passes import run_passes

    assert command.passes is not None
    if len(command.batch) > 1:
        raise FqtError("passes run on one graph", code="FQT202", hint="give --batch one number")
    text = run_passes(model, command.passes, batch=next(iter(command.batch), None))
    if command.output is None:
        click.echo(text, nl=False)
        return
    try:
        command.output.write_text(text)
    except OSError as error:
        raise FqtError(f"cannot write {command.output}: {error.strerror}", code="FQT508") from None


def _outputs(stem: Path, output: Path | None, kinds: tuple[str, ...]) -> dict[str, Path]:
    """The path of each kind of output: ``output`` itself for one kind, else beside it under their own endings."""
    if output is not None and len(set(kinds)) == 1:
        return {kinds[0]: output}
    stem = stem if output is None else output.with_suffix("") if output.suffix in SUFFIXES.values() else output
    return {kind: stem.with_name(stem.name + SUFFIXES[kind]) for kind in kinds}


def _written(outputs: dict[str, Path]) -> Iterator[Path]:
    """The files and folders beside the artifact."""
    for kind, path in outputs.items():
        if kind == "onnx-step":
            yield from dataclasses.astuple(step_files(path))
        elif kind != "so":
            yield path


def _check(model: Path, command: CommandOptions, given: dict[str, Any]) -> None:
    with _progress(command.quiet) as progress:
        progress("loading the model")
        from fqt_deploy.capture.load_model import load_model
        from fqt_deploy.compiler.check import check_model
        from fqt_deploy.report import check_report

        source = load_model(model, batch=command.batch, weights=command.weights, skip=command.skip_weights)
        report = check_model(source, options_of(merge_settings(source.options, given)), progress=progress)
    if command.json:
        click.echo(report.to_json())
    else:
        check_report(report, quiet=command.quiet)
    if not report.ok:
        sys.exit(EXIT_ERROR)


def _plan(model: Path, command: CommandOptions, given: dict[str, Any]) -> None:
    from fqt_deploy.core.layer_bits import ACTIVATION_BITS
    from fqt_deploy.core.layer_plan import SUFFIX

    output = command.output or Path(model.stem + SUFFIX)
    with _progress(command.quiet) as progress:
        progress("loading the model")
        from fqt_deploy.capture.load_model import load_model
        from fqt_deploy.planning.make_plan import make_plan
        from fqt_deploy.planning.plan import Budget
        from fqt_deploy.planning.plan_file import check_plan_output, write_plan
        from fqt_deploy.planning.plan_text import plan_json, plan_text

        check_plan_output(output)
        source = load_model(model, batch=command.batch, weights=command.weights, skip=command.skip_weights)
        options = options_of(merge_settings(source.options, given))
        time_share = 1.0 if command.plan_noise is None and command.plan_time is None else command.plan_time
        budget, bits = Budget(time_share, command.plan_noise), command.plan_bits or ACTIVATION_BITS
        plan = make_plan(source, options, budget, bits=bits, gradient_bits=command.plan_grad_bits, progress=progress)
    write_plan(plan, output)
    if command.json:
        click.echo(plan_json(plan))
    elif not command.quiet:
        told = f"{output}: fqt-compile {model} --plan-file {output}, and the other options that were given here"
        click.echo(f"{plan_text(plan)}\n{told}")


def _compile(model: Path, outputs: dict[str, Path], command: CommandOptions, given: dict[str, Any]) -> None:
    require_compiler()
    if "so" in outputs:
        check_replaceable(outputs["so"])
    if "onnx-plugin" in outputs:
        from fqt_deploy.compiler.export_plugin import check_plugin_output

        check_plugin_output(outputs["onnx-plugin"])
    from rich.console import Console

    console = Console(quiet=command.quiet)
    start = time.perf_counter()
    with _progress(command.quiet) as progress:
        progress("loading the model")
        from fqt_deploy.build_cache.build_artifact import build_artifact
        from fqt_deploy.capture.load_model import load_model
        from fqt_deploy.core.watched_files import watched_files

        with watched_files() as read:
            source = load_model(model, batch=command.batch, weights=command.weights, skip=command.skip_weights)
        options = options_of(merge_settings(source.options, given))
        if command.profile:
            from fqt_deploy.compiler.profile import check_can_profile

            check_can_profile(options)
        build: Build | None
        if set(outputs) == {"so"}:
            build = build_artifact(source, options, outputs["so"], progress=progress, read=read)
        else:
            build = _export(source, options, outputs, console, progress)
    if build is not None:
        _report(build, console, time.perf_counter() - start, time_passes=options.time_passes)
        _print_lines(console, build.notes)
    for path in _written(outputs):
        from fqt_deploy.report import megabytes

        _print_lines(console, [f"{path}: {megabytes(_size(path))}"])
    if command.profile:
        from fqt_deploy.profiling.rows import layer_rows
        from fqt_deploy.profiling.tables import profile_text

        with _progress(command.quiet) as progress:
            progress("timing the step")
            from fqt_deploy.compiler.profile import compare_with_torch

            profile = compare_with_torch(source, outputs["so"])
        console.print(profile_text(profile, layer_rows(profile)), highlight=False, markup=False, soft_wrap=True)
    compiled = build.compiled if build is not None else None
    if compiled is not None and compiled.verification is not None and not compiled.verification.ok:
        sys.exit(EXIT_ERROR)


def _export(
    source: ModelSource,
    options: CompileOptions,
    outputs: dict[str, Path],
    console: Console,
    progress: Callable[[str], None],
) -> Build | None:
    """Write several kinds of outputs from one capture; what is said of the model is printed unless it is returned."""
    from fqt_deploy.build_cache.build_artifact import Build, notes_of
    from fqt_deploy.compiler.compile_model import check_can_compile, compile_model, lower_model
    from fqt_deploy.compiler.describe import layer_decisions
    from fqt_deploy.compiler.export_onnx import export_onnx, export_onnx_inference, export_onnx_step
    from fqt_deploy.compiler.export_plugin import export_plugin
    from fqt_deploy.report import decision_table

    if {"so", "onnx-plugin"} & outputs.keys():
        target = check_can_compile(options)
    lowered = lower_model(source, options, progress=progress, whole=outputs.keys() == {"so"})
    if "onnx" in outputs:
        progress("writing the training step as ONNX")
        export_onnx(source, options, lowered, outputs["onnx"])
    if "onnx-infer" in outputs:
        progress("writing the prediction as ONNX")
        export_onnx_inference(source, options, lowered, outputs["onnx-infer"])
    if "onnx-step" in outputs:
        progress("writing step, prediction and state for any ONNX Runtime")
        export_onnx_step(source, options, lowered, outputs["onnx-step"])
    if "onnx-plugin" in outputs:
        progress("compiling the plug-in's kernels")
        export_plugin(lowered, target, outputs["onnx-plugin"])
    if "so" in outputs:
        result = compile_model(source, options, outputs["so"], progress=progress, lowered=lowered)
        return Build(result.manifest, result.output, notes_of(lowered), result)
    console.print(decision_table(layer_decisions(lowered.train)))
    _print_lines(console, notes_of(lowered))
    return None


def _report(build: Build, console: Console, seconds: float, *, time_passes: bool) -> None:
    from fqt_deploy.report import decision_table, megabytes, pass_check_table, pass_table, verification_table

    layers = build.manifest.layers
    console.print(decision_table(layers))
    if build.compiled is not None and time_passes:
        console.print(pass_table(build.compiled.pass_times))
    if build.compiled is not None and build.compiled.verification is not None:
        console.print(pass_check_table(build.compiled.verification))
        console.print(verification_table(build.compiled.verification))
    binarized = sum(layer.decision == "1-bit" for layer in layers)
    how = "compiled" if build.compiled is not None else "copied from the same model's last compilation"
    _print_lines(
        console,
        [
            f"{build.output}: {megabytes(_size(build.output))}, {binarized} of {len(layers)} layers in 1 bit, "
            f"{how} in {seconds:.1f} s"
        ],
    )


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show the current phase: a spinner on a terminal, one line a phase elsewhere; nothing if ``quiet``."""
    from rich.console import Console

    console = Console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield lambda phase: console.print(f"{phase} ...", highlight=False)
        return
    with console.status("") as status:
        yield lambda phase: status.update(f"{phase} ...")


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn errors into the exit codes of the commands."""
    try:
        yield
    except InvariantError:
        _bug()
    except FqtError as error:
        click.echo(error.render(), err=True)
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(EXIT_ERROR)
    except Exception:  # noqa: BLE001 - the outermost frame: whatever arrives here is a bug
        _bug()


def _bug() -> None:
    traceback.print_exc()
    click.echo("internal error: this is a bug in fqt-deploy; please report it with the text above", err=True)
    sys.exit(EXIT_BUG)


if __name__ == "__main__":
    main()
