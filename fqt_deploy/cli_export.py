"""The command fqt-export: the weights of an artifact or a checkpoint for other programs.

A ``.safetensors`` file needs neither PyTorch nor the compiler, a ``.pt`` file needs PyTorch, an ``.onnx`` file the
compiler and the model file. Exit codes: 0 success, 1 a mistake that the person can repair, 2 wrong usage.
"""

from __future__ import annotations

import glob
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fqt_deploy import __version__
from fqt_deploy.command_line import SectionedCommand, given_options, with_flags
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.export_options import EXPORT_OPTIONS, ExportOptions
from fqt_deploy.runtime.artifact import MANIFEST, STATE, check_members
from fqt_deploy.runtime.checkpoint import load_checkpoint
from fqt_deploy.runtime.files import (
    Arrays,
    read_aligned_tensors,
    read_file,
    replace_file,
    state_misfit,
    tensors_to_bytes,
)
from fqt_deploy.runtime.zero_state import with_absent_zeros
from fqt_deploy.training_options import CHECKPOINT

EXAMPLES = """
\b
Examples:
  fqt-export vgg16.fqt -o vgg16.safetensors                the weights as fqt-compile or Session.save left them
  fqt-export vgg16.fqt --checkpoint -o vgg16.pt            those of DIR/checkpoint.safetensors, for torch.load
  fqt-export vgg16.fqt --checkpoint run.safetensors --averages -o vgg16.safetensors
  fqt-export vgg16.fqt --checkpoint --model vgg16.py -o vgg16.onnx     the prediction, for ONNX Runtime

\b
The weights of 1-bit layers are latent: the step computes with their signs and the mean of their magnitudes, or with
a few levels where they have 2 or 4 bits. A model that is loaded with them computes with them as they are, which is
another function, and far less accurate: evaluate with predict, with the .onnx file, or with the module that
to_torch() of a compiled step gives. The metadata of the .safetensors file name the 1-bit layers.
"""

_LATENT = "weights of these layers are latent: their signs, or a few levels, scaled, are what the model computes with"


@with_flags(EXPORT_OPTIONS.values())
@click.command(cls=SectionedCommand, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("artifact", type=click.Path(path_type=Path), metavar="DIR")
@click.version_option(__version__)
def main(artifact: Path, **values: Any) -> None:
    """Write the weights of the artifact in DIR to a file for other programs."""
    try:
        options = ExportOptions(**given_options(EXPORT_OPTIONS.values(), values))
        assert options.output is not None
        checkpoint = _checkpoint_of(artifact, options.checkpoint)
        export(artifact, options.output, checkpoint, averages=options.averages, model=options.model)
    except FqtError as error:
        click.echo(error.render(), err=True)
        sys.exit(1)
    click.echo(f"wrote {options.output}", err=True)


def export(
    artifact: Path, output: Path, checkpoint: Path | None = None, *, averages: bool = False, model: Path | None = None
) -> None:
    """Write the weights of an artifact, whole or not at all.

    Args:
        artifact: the folder; it may be for another kind of machine.
        output: the file; its ending says which format.
        checkpoint: take the weights from there.
        averages: take the averages of the parameters in their place.
        model: the model file, for ONNX.

    Raises:
        FqtError: FQT202 for another ending, or ONNX without the model file; FQT501 to FQT508 as for ``fqt_deploy.load``
            and ``Session.load_checkpoint``; FQT513 without averages.
    """
    writers: dict[str, Callable[[Manifest, Arrays], bytes]] = {".safetensors": _safetensors, ".pt": _pt, ".pth": _pt}
    if output.suffix not in (*writers, ".onnx"):
        known = ", ".join((*writers, ".onnx"))
        raise FqtError(f"{output} is to have the ending {output.suffix!r}", code="FQT202", hint=f"endings are {known}")
    if output.suffix == ".onnx" and model is None:
        raise FqtError(
            "an artifact holds no graph to write as ONNX", code="FQT202", hint="give the model file: --model model.py"
        )
    manifest, state = _read(artifact, checkpoint)
    weights = {name: _evaluated(state, key, averages) for name, key in manifest.module_names.items()}
    if averages and not any(name.startswith("ema/") for name in state):
        raise FqtError("the step keeps no averages", code="FQT513", hint="compile it with --ema 0.999")
    if model is not None and output.suffix == ".onnx":
        _onnx(manifest, weights, model, output)
    else:
        replace_file(output, writers[output.suffix](manifest, weights))


def _checkpoint_of(artifact: Path, given: Path | None) -> Path | None:
    return artifact / CHECKPOINT if given == Path(CHECKPOINT) and not given.exists() else given


def _read(artifact: Path, checkpoint: Path | None) -> tuple[Manifest, Arrays]:
    """The manifest, and the state of the artifact or the checkpoint; no code in the artifact is loaded."""
    if not (artifact / MANIFEST).is_file():
        raise FqtError(f"{artifact} is not an artifact", code="FQT501", hint="make an artifact with fqt-compile")
    manifest = Manifest.from_json(read_file(artifact / MANIFEST))
    check_members(artifact)
    if checkpoint is not None:
        return manifest, load_checkpoint(checkpoint, manifest)[0]
    arrays = with_absent_zeros(manifest.state, read_aligned_tensors(artifact / STATE))
    if misfit := state_misfit(manifest.state, arrays):
        raise FqtError(f"{artifact / STATE}: {misfit}", code="FQT502")
    return manifest, arrays


def _evaluated(state: Mapping[str, NDArray[Any]], name: str, averages: bool) -> NDArray[Any]:
    average = name.replace("param/", "ema/", 1)
    return state[average if averages and average in state else name]


def _one_bit(manifest: Manifest) -> list[str]:
    return [layer.path for layer in manifest.layers if layer.decision == "1-bit"]


def _safetensors(manifest: Manifest, weights: Arrays) -> bytes:
    metadata = {"format": "pt", "fqt_1bit_layers": json.dumps(_one_bit(manifest)), "fqt_note": _LATENT}
    return tensors_to_bytes({name: np.array(array, order="C") for name, array in weights.items()}, metadata)


def _pt(manifest: Manifest, weights: Arrays) -> bytes:
    try:
        import torch
    except ImportError:
        raise FqtError(
            "PyTorch is not installed", code="FQT303", hint="write a .safetensors file, or pip install torch"
        ) from None
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in weights.items()}, file)
    return file.getvalue()


def _onnx(manifest: Manifest, weights: Arrays, model: Path, output: Path) -> None:
    """Write the prediction of the model file with ``weights`` for any batch; the layers run as in the artifact."""
    from fqt_deploy.core.compiler_extra import require_compiler

    require_compiler()
    import torch

    from fqt_deploy.capture.load_model import load_model
    from fqt_deploy.compiler.describe import recorded_grids
    from fqt_deploy.compiler.export_onnx import export_onnx_any_batch
    from fqt_deploy.settings import options_of

    grids = recorded_grids(manifest)
    source = load_model(model, batch=manifest.batch)
    state = source.module.state_dict()
    if wrong := [n for n, array in weights.items() if n not in state or tuple(state[n].shape) != array.shape]:
        raise FqtError(
            f"{model} is another model than {manifest.name}: {wrong[0]} does not fit",
            code="FQT504",
            hint="give the model file that the artifact was compiled from",
        )
    source.module.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in weights.items()}, strict=False)
    layers = tuple(map(glob.escape, _one_bit(manifest)))
    chosen = {"include": layers} if layers else {"exclude": ("*",)}
    bits = {glob.escape(x.path): (x.weight_bits, x.activation_bits) for x in manifest.layers if x.weight_bits > 1}
    options = options_of({"recipe": "none", "bits": bits, **chosen})
    export_onnx_any_batch(source, options, output, grids)


if __name__ == "__main__":
    main()
