"""The example models and those of the benchmarks by name, and how to compile one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fqt_deploy.capture.load_model import ModelSource
    from fqt_deploy.compiler.compile_model import CompileResult

_FOLDER = Path(__file__).resolve().parents[1] / "examples"
_BENCHMARKED = Path(__file__).resolve().parent / "bench_models"

EXAMPLES: dict[str, Path] = {
    "bert_base": _BENCHMARKED / "bert_base.py",
    "bert_sst2": _FOLDER / "bert_sst2.py",
    "convnext_tiny": _BENCHMARKED / "convnext_tiny.py",
    "digits": _FOLDER / "digits_cnn.py",
    "distilgpt2_lm": _FOLDER / "distilgpt2_lm.py",
    "gpt2_small": _BENCHMARKED / "gpt2_small.py",
    "mixer": _FOLDER / "mlp_mixer.py",
    "mobilenet_v3": _FOLDER / "mobilenet_v3.py",
    "resnet18": _FOLDER / "resnet18_cifar.py",
    "unet": _FOLDER / "unet.py",
    "vgg16": _FOLDER / "vgg16_cifar.py",
    "vgg16_imagenet": _FOLDER / "vgg16_imagenet.py",
    "vit_s16": _BENCHMARKED / "vit_s16.py",
    "vit_s16_96": _FOLDER / "vit_s16.py",
}
"""The model files by name."""

PACKAGES: dict[str, str] = {"bert_sst2": "transformers", "distilgpt2_lm": "transformers"}
"""The package that an example needs besides the compiler."""


def load_example(name: str, batch: int | None = None) -> ModelSource:
    """The model called ``name``, for ``batch`` samples in a step."""
    from fqt_deploy.capture.load_model import load_model

    return load_model(EXAMPLES[name], batch=batch)


def compile_example(source: ModelSource, settings: Mapping[str, Any], output: Path) -> CompileResult:
    """Compile ``source`` into the folder ``output``; ``settings`` win over those of the model file."""
    from fqt_deploy.compiler.compile_model import compile_model
    from fqt_deploy.settings import merge_settings, options_of

    return compile_model(source, options_of(merge_settings(source.options, settings)), output)
