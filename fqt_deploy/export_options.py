"""The options of ``fqt-export``, declared as those of ``fqt-compile`` are; each field is a flag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import WRITING, check_options, option, options_in
from fqt_deploy.training_options import CHECKPOINT


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the command reads and writes.

    Raises:
        FqtError: FQT202 for a value that is none of an option, and where there is no output.
    """

    output: Path | None = option(
        None,
        "Write this .safetensors, .pt or .onnx file; it must be given.",
        section=WRITING,
        flags=("-o", "--output"),
    )
    checkpoint: Path | None = option(
        None,
        f"Take the weights from this checkpoint of the artifact; without FILE from DIR/{CHECKPOINT}.",
        section=WRITING,
        metavar="[FILE]",
        default_text="those of the artifact",
        alone=CHECKPOINT,
    )
    averages: bool = option(
        False, "Take the averages of the parameters, which --ema keeps.", section=WRITING, flags=("--averages",)
    )
    model: Path | None = option(None, "The model file; for .onnx.", section=WRITING, metavar="FILE.py")

    def __post_init__(self) -> None:
        check_options(self)
        if self.output is None:
            raise FqtError("there is no file to write", code="FQT202", hint="give one: -o weights.safetensors")


EXPORT_OPTIONS = options_in(ExportOptions)
"""The options of the command by name."""
