"""The options of ``fqt-compile`` that say what the command does; how a model is compiled is in ``core/options.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_bits import ACTIVATION_BITS
from fqt_deploy.core.option import CHECKS, WRITING, check_options, option, options_in
from fqt_deploy.core.option_kinds import choice, listed, number, string
from fqt_deploy.core.options import GRADIENT_BITS

SUFFIXES = {
    "so": ".fqt",
    "onnx": ".onnx",
    "onnx-infer": ".infer.onnx",
    "onnx-step": ".step.onnx",
    "onnx-plugin": ".plugin",
}
"""The kinds that ``--emit`` can write, each with the ending of its name."""


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """The options of what ``fqt-compile`` reads, writes and prints; each field is a flag."""

    output: Path | None = option(
        None,
        "Write to this folder or file.",
        section=WRITING,
        default_text="MODEL and its ending",
        flags=("-o", "--output"),
    )
    emit: tuple[Literal["so", "onnx", "onnx-infer", "onnx-step", "onnx-plugin"], ...] = option(
        ("so",),
        "Write the artifact (so), or for ONNX Runtime in Python the training step (onnx), the prediction (onnx-infer), "
        "or fast kernels for both (onnx-plugin); or step, prediction and state for any ONNX Runtime, such as a "
        "browser's (onnx-step). Repeatable.",
        section=WRITING,
    )
    batch: tuple[int, ...] = option(
        (),
        "Compile for this many samples in a step, or for several numbers, with commas between them.",
        section=WRITING,
        metavar="LIST",
        default_text="as in example_inputs()",
        kind=listed(number(int, 1)),
    )
    weights: Path | None = option(
        None,
        "Start from this state dict or checkpoint, a .safetensors or .pt file.",
        section=WRITING,
        metavar="FILE",
        default_text="those of build_model()",
    )
    skip_weights: tuple[str, ...] = option(
        (),
        "Keep weights that match as build_model() makes them, such as a head of another size. Repeatable.",
        section=WRITING,
        metavar="GLOB",
        default_text="none",
    )
    check: bool = option(
        False,
        "Say what would run in 1 bit, and why, and everything that cannot be compiled; write nothing.",
        section=CHECKS,
        flags=("--check",),
    )
    plan: bool = option(
        False,
        "Compile nothing: measure time and noise of each layer in fp32, and in 1 bit with several widths of "
        "activations, and write the best plan to MODEL.plan.toml, or to -o, for --plan-file.",
        section=CHECKS,
        flags=("--plan",),
    )
    plan_time: float | None = option(
        None,
        "Plan for the least noise in at most this share of the time of the step that the options ask for.",
        section=CHECKS,
        minimum=0,
        default_text="1, without --plan-noise",
    )
    plan_noise: float | None = option(
        None,
        "Plan for the least time with at most this share of the noise of the step that the options ask for.",
        section=CHECKS,
        minimum=0,
        default_text="none",
    )
    plan_bits: tuple[int, ...] = option(
        (),
        "Measure these numbers of bits alone, and what the options ask for, with commas between them: each is one "
        "more step to compile.",
        section=CHECKS,
        metavar="LIST",
        default_text=",".join(map(str, ACTIVATION_BITS)),
        kind=listed(choice(ACTIVATION_BITS)),
    )
    plan_grad_bits: tuple[int, ...] = option(
        (),
        "Measure the chosen step with these bits of gradients, too, its time and the noise of its gradients, with "
        "commas between them.",
        section=CHECKS,
        metavar="LIST",
        default_text="none",
        kind=listed(choice(GRADIENT_BITS)),
    )
    passes: str | None = option(
        None,
        "Compile nothing: run these passes, such as 'normalize-views,insert-scq{bits=3}', on the captured graph, or on "
        "one in a file *.fqtir; print the result, or write it to -o.",
        section=CHECKS,
        metavar="LIST",
        flags=("--passes",),
        kind=string(may_be_empty=True),
    )
    quiet: bool = option(
        False, "Print errors alone, and what --json or --print-after asks for.", section=CHECKS, flags=("-q", "--quiet")
    )
    json: bool = option(False, "Print what --check or --plan says as JSON.", section=CHECKS, flags=("--json",))
    profile: bool = option(
        False,
        "Time the compiled step, layer by layer, beside PyTorch in fp32.",
        section=CHECKS,
        flags=("--profile",),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.json and not (self.check or self.plan):
            raise FqtError(
                "--json is the form of what --check and --plan say", code="FQT202", hint="add --check or --plan"
            )
        if self.plan and (self.check or self.profile or self.emit != ("so",)):
            raise FqtError(
                "--plan compiles and checks nothing", code="FQT202", hint="leave out --check, --profile and --emit"
            )
        bounded = self.plan_time is not None or self.plan_noise is not None
        if (bounded or self.plan_bits or self.plan_grad_bits) and not self.plan:
            raise FqtError("options that begin with --plan- say how to plan", code="FQT202", hint="add --plan")
        if self.plan_time is not None and self.plan_noise is not None:
            raise FqtError("a plan has one bound", code="FQT202", hint="give --plan-time or --plan-noise")
        if self.profile and (self.check or "so" not in self.emit):
            raise FqtError("--profile times the artifact", code="FQT202", hint="leave out --check; add --emit so")


COMMAND_OPTIONS = options_in(CommandOptions)
"""The options of the command alone, by name."""
