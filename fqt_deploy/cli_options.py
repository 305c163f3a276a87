"""The options of ``fqt-compile`` that say what the command does; how a model is compiled is in ``core/options.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fqt_deploy.core.option import CHECKS, WRITING, check_options, option, options_in

SUFFIXES = {"so": ".fqt", "onnx": ".onnx", "onnx-infer": ".infer.onnx", "onnx-plugin": ".plugin"}
"""What ``--emit`` can write, with the ending of its name."""


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """What ``fqt-compile`` reads, writes and prints; each field is a flag."""

    output: Path | None = option(
        None,
        "Write to this folder or file.",
        section=WRITING,
        default_text="MODEL and its ending",
        flags=("-o", "--output"),
    )
    emit: tuple[Literal["so", "onnx", "onnx-infer", "onnx-plugin"], ...] = option(
        ("so",),
        "Write the artifact (so), or for ONNX Runtime the training step (onnx), the prediction (onnx-infer), or fast "
        "kernels for both (onnx-plugin). Repeatable.",
        section=WRITING,
    )
    batch: int | None = option(
        None,
        "Compile for this many samples in a step.",
        section=WRITING,
        default_text="as in example_inputs()",
        minimum=1,
    )
    weights: Path | None = option(
        None,
        "Start from this state dict, a .safetensors or .pt file.",
        section=WRITING,
        metavar="FILE",
        default_text="those of build_model()",
    )
    profile: bool = option(
        False,
        "Time the compiled step, layer by layer, beside PyTorch in fp32.",
        section=CHECKS,
        flags=("--profile",),
    )

    def __post_init__(self) -> None:
        check_options(self)


COMMAND_OPTIONS = options_in(CommandOptions)
"""The options of the command alone, by name."""
