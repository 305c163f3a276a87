"""fqt-compile: from a model file to a compiled training step.

Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage, 70 a bug of ours.
"""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqt_deploy import __version__
from fqt_deploy.core.compiler_extra import require_compiler
from fqt_deploy.core.diagnostics import FqtError, InvariantError
from fqt_deploy.runtime.artifact import check_replaceable

if TYPE_CHECKING:
    from rich.console import Console

    from fqt_deploy.compiler import CompileResult

EXIT_ERROR = 1
EXIT_BUG = 70

SUFFIXES = {"so": ".fqt", "onnx": ".onnx", "onnx-infer": ".infer.onnx", "onnx-plugin": ".plugin"}
"""What ``--emit`` can write, with the ending of its name."""

EXAMPLES = """
\b
Examples:
  fqt-compile model.py                                  for this machine, into model.fqt
  fqt-compile model.py --recipe none -o fp32grad.fqt    1-bit forward, fp32 gradients
  fqt-compile model.py --grad-bits 2 --agp once         another gradient width and selection
  fqt-compile model.py --weights w.safetensors --optimizer sgd --lr 0.01 --momentum 0.9
  fqt-compile model.py --mcpu x86-64-v3 --exclude 'head.*' --verify numerics
  fqt-compile model.py --target cuda --arch sm_90a      for an H100; needs no GPU here
  fqt-compile model.py --profile                        time it, layer by layer, beside PyTorch
  fqt-compile model.py --tune                           measure tiles of 1-bit products here first
  fqt-compile model.py --target rpi5                    for a Raspberry Pi 5, on a PC
  fqt-compile model.py --emit onnx --emit onnx-infer    model.onnx and model.infer.onnx, for ONNX Runtime

\b
MODEL.py defines
  build_model()        -> torch.nn.Module
  example_inputs()     -> (inputs, targets), one batch
  loss_fn(outputs, targets) -> scalar       optional; default: cross-entropy
  compile_options()    -> dict              optional; the options below, with _ for -
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
    from fqt_deploy.ops.spec import OPS

    for name, spec in sorted(OPS.items()):
        click.echo(f"fqt.{name:28} {spec.kind.value:12} {_summary(spec.reference)}")


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


@click.command(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.py")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder or file to write.  [default: MODEL and its ending]"
)
@click.option(
    "--emit",
    multiple=True,
    type=click.Choice(list(SUFFIXES)),
    help="so: artifact; onnx: training step; onnx-infer: prediction; onnx-plugin: fast kernels for both; repeatable.  "
    "[default: so]",
)
@click.option("--target", help="What to compile for; see --list-targets.  [default: cpu]")
@click.option("--mcpu", help="Processor: x86-64-v3, znver4, cortex-a72, ...  [default: the target's own]")
@click.option("--arch", metavar="LIST", help="GPU architectures, such as sm_80,sm_90a.  [default: sm_80,sm_90a]")
@click.option("--tf32", is_flag=True, default=None, help="GPUs: round operands of fp32 products to TF32, for speed.")
@click.option("--batch", type=click.IntRange(min=1), help="Samples in a step.  [default: as in example_inputs()]")
@click.option("--weights", type=click.Path(path_type=Path), help="State dict to start from: .safetensors or .pt.")
@click.option(
    "--recipe",
    type=click.Choice(["none", "psq-8", "psq-1", "scq", "scq+agp"]),
    help="How gradients are quantized.  [default: scq+agp]",
)
@click.option(
    "--grad-bits",
    type=click.Choice(["1", "2", "3", "4", "8"]),
    help="Bits of a kept gradient.  [default: 3 for nested selections, else 4]",
)
@click.option(
    "--agp",
    type=click.Choice(["topk", "sampled", "once", "nested"]),
    help="How the gradients to keep are selected.  [default: nested, or sampled where a model does not allow it]",
)
@click.option(
    "--grid", type=click.Choice(["minmax", "zero"]), help="Quantization grid.  [default: zero, minmax for 1 bit]"
)
@click.option(
    "--projection",
    type=click.Choice(["auto", "off"]),
    help="auto: take out noise where batch normalization makes weight gradients zero.  [default: auto]",
)
@click.option(
    "--remat",
    type=click.Choice(["off", "auto"]),
    help="auto: compute 1-bit products of forward again in backward; less memory, more time.  [default: off]",
)
@click.option("--include", multiple=True, metavar="GLOB", help="Binarize exactly these layers; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these layers in fp32; repeatable.")
@click.option("--optimizer", type=click.Choice(["adam", "adamw", "sgd"]), help="[default: adam]")
@click.option("--lr", type=float, help="Learning rate; the compiled step takes it as an input too.")
@click.option("--weight-decay", type=float, help="Weight decay.")
@click.option("--momentum", type=float, help="Momentum of sgd.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of rounding and selection.  [default: 0]")
@click.option(
    "--tune", is_flag=True, default=None, help="Measure tiles of 1-bit products here first, and keep the fastest."
)
@click.option(
    "--tuning-log",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Measured tiles to go by, and where --tune adds its own.  [default: one in the user's cache folder]",
)
@click.option(
    "--verify",
    type=click.Choice(["off", "structure", "numerics"]),
    help="Check nothing, every graph, or also every kernel, foreign ones under QEMU.  [default: structure]",
)
@click.option("--dump-ir", type=click.Path(path_type=Path), metavar="DIR", help="Write the graph after every pass.")
@click.option("--print-after", multiple=True, metavar="PASS", help="Print the graph after this pass; repeatable.")
@click.option(
    "--passes",
    metavar="LIST",
    help="Compile nothing: run these passes, such as 'normalize-views,insert-scq{bits=3}', on the captured graph or on "
    "one in a file *.fqtir, and print the result, or write it to -o.",
)
@click.option("--time-passes", is_flag=True, default=None, help="Print the time that each pass took.")
@click.option("--profile", is_flag=True, help="Time the compiled step, layer by layer, beside PyTorch in fp32.")
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
def main(
    model: Path,
    output: Path | None,
    emit: tuple[str, ...],
    batch: int | None,
    weights: Path | None,
    profile: bool,
    passes: str | None,
    **given: Any,
) -> None:
    """Compile the PyTorch model in MODEL.py into a 1-bit training step that runs without PyTorch."""
    settings = {name: value for name, value in given.items() if value is not None and value != ()}
    if "grad_bits" in settings:
        settings["grad_bits"] = int(settings["grad_bits"])
    with exit_codes():
        if passes is not None:
            _run_passes(
                model, passes, output, batch, {**settings, "emit": emit, "weights": weights, "profile": profile}
            )
            return
        outputs = _outputs(Path(model.stem), output, emit or ("so",))
        if profile and "so" not in outputs:
            raise FqtError("--profile times the artifact", code="FQT202", hint="add --emit so")
        _compile(model, outputs, batch, weights, profile, settings)


def _run_passes(file: Path, passes: str, output: Path | None, batch: int | None, others: dict[str, Any]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value]
    if given:
        hint = "options of passes are given with their names; --list-passes shows them"
        raise FqtError(f"{given[0]} has no effect beside --passes", code="FQT202", hint=hint)
    require_compiler()
    from fqt_deploy.compiler.run_passes import run_passes

    text = run_passes(file, passes, batch=batch)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise FqtError(f"cannot write {output}: {error.strerror}", code="FQT508") from None


def _outputs(stem: Path, output: Path | None, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Where each kind goes: one kind to ``output`` itself, several beside it under their own endings."""
    if output is not None and len(set(kinds)) == 1:
        return {kinds[0]: output}
    stem = stem if output is None else output.with_suffix("") if output.suffix in SUFFIXES.values() else output
    return {kind: stem.with_name(stem.name + SUFFIXES[kind]) for kind in kinds}


def _compile(
    model: Path, outputs: dict[str, Path], batch: int | None, weights: Path | None, profile: bool, given: dict[str, Any]
) -> None:
    require_compiler()
    if "so" in outputs:
        check_replaceable(outputs["so"])
    from rich.console import Console

    console = Console()
    start = time.perf_counter()
    result = None
    with _progress() as progress:
        progress("loading the model")
        from fqt_deploy.capture.load_model import load_model
        from fqt_deploy.compiler import (
            check_can_compile,
            check_can_profile,
            compile_model,
            export_onnx,
            export_onnx_inference,
            lower_model,
            profile_artifact,
        )
        from fqt_deploy.compiler.describe import layer_decisions
        from fqt_deploy.compiler.export_plugin import check_plugin_output, export_plugin
        from fqt_deploy.report import decision_table, megabytes, timing_table
        from fqt_deploy.settings import merge_settings, options_of

        if "onnx-plugin" in outputs:
            check_plugin_output(outputs["onnx-plugin"])
        source = load_model(model, batch=batch, weights=weights)
        options = options_of(merge_settings(source.options, given))
        if profile:
            check_can_profile(options)
        if {"so", "onnx-plugin"} & outputs.keys():
            target = check_can_compile(options)
        lowered = lower_model(source, options, progress=progress)
        if "onnx" in outputs:
            progress("writing the training step as ONNX")
            export_onnx(source, options, lowered, outputs["onnx"])
        if "onnx-infer" in outputs:
            progress("writing the prediction as ONNX")
            export_onnx_inference(source, options, lowered, outputs["onnx-infer"])
        if "onnx-plugin" in outputs:
            progress("compiling the plug-in's kernels")
            export_plugin(lowered, target, outputs["onnx-plugin"])
        if "so" in outputs:
            result = compile_model(source, options, outputs["so"], progress=progress, lowered=lowered)
    if result is not None:
        _report(result, console, time.perf_counter() - start, time_passes=options.time_passes)
    else:
        console.print(decision_table(layer_decisions(lowered.train)))
    if lowered.train.selection_note:
        console.print(f"--agp {lowered.train.selection}: {lowered.train.selection_note}", highlight=False, markup=False)
    for path in (path for kind, path in outputs.items() if kind != "so"):
        files = path.rglob("*") if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in files if file.is_file())
        console.print(f"{path}: {megabytes(size)}", highlight=False)
    if profile:
        with _progress() as progress:
            progress("timing the step")
            timings = profile_artifact(source, outputs["so"])
        console.print(timing_table(timings))
    if result is not None and result.verification is not None and not result.verification.ok:
        sys.exit(EXIT_ERROR)


def _report(result: CompileResult, console: Console, seconds: float, *, time_passes: bool) -> None:
    from fqt_deploy.report import decision_table, megabytes, pass_check_table, pass_table, verification_table

    console.print(decision_table(result.manifest.layers))
    if time_passes:
        console.print(pass_table(result.pass_times))
    if result.verification is not None:
        console.print(pass_check_table(result.verification))
        console.print(verification_table(result.verification))
    size = sum(file.stat().st_size for file in result.output.rglob("*") if file.is_file())
    binarized = sum(layer.decision == "1-bit" for layer in result.manifest.layers)
    console.print(
        f"{result.output}: {megabytes(size)}, {binarized} of {len(result.manifest.layers)} layers in 1 bit, "
        f"compiled in {seconds:.1f} s",
        highlight=False,
    )


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show the current phase: a spinner on a terminal, one line a phase elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
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
