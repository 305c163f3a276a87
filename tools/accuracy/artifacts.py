"""Compiled steps of the study, kept by what they were compiled from."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.settings import options_of
from tools.accuracy.ideas import changed_passes
from tools.accuracy.networks import Calibration, Network, model_source
from tools.accuracy.rows import OPTIMIZERS, ROWS, SIGNS, Settings
from tools.examples import compile_example

_COMPILER = Path(fqt_deploy.__file__).parent


def artifact_of(
    network: Network,
    classes: int,
    batch: int,
    settings: Settings,
    cache: Path,
    calibration: Calibration | None = None,
) -> Path:
    """The artifact of ``network`` under ``settings``; compiled unless ``cache`` has it.

    Network, shapes, settings and the compiler's own files decide: no step of an older compiler is used. So does
    ``calibration``, where activations have grids.
    """
    if settings.items() >= SIGNS.items():
        calibration = None  # they fit everything
    chosen = [calibration.digest] if calibration else []
    recipe = json.dumps([network.name, classes, batch, settings, _compiler_digest(), *chosen], sort_keys=True)
    folder = cache / f"{network.name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.fqt"
    if not folder.exists():  # an artifact is written whole or not at all
        cache.mkdir(parents=True, exist_ok=True)
        _compile(model_source(network, classes, batch, calibration=calibration), settings, folder)
    return folder


def _compile(source: ModelSource, settings: Settings, folder: Path) -> None:
    """Compile ``source``; the setting ``idea`` names passes that the compiler does not have."""
    known = {name: value for name, value in settings.items() if name != "idea"}
    if "idea" not in settings:
        compile_example(source, known, folder)
        return
    options = options_of(known)
    lowered = lower_model(source, options, passes=changed_passes(options, settings["idea"]))
    compile_model(source, options, folder, lowered=lowered)


def binarized_layers(network: Network, classes: int, batch: int, cache: Path) -> list[str]:
    """Paths of the layers that the compiler binarizes."""
    artifact = artifact_of(network, classes, batch, ROWS["none"] | OPTIMIZERS["adam"], cache)
    manifest = Manifest.from_json((artifact / "manifest.json").read_bytes())
    return [layer.path for layer in manifest.layers if layer.decision == "1-bit"]


@functools.cache  # what this process has imported, whatever happens to the files later
def _compiler_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(_COMPILER.rglob("*.py")):
        digest.update(file.relative_to(_COMPILER).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
