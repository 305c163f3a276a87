"""Command ``theory``: variance of quantizers beside the paper's bounds, and bias, variance and cosine of whole steps.

Each point in training is a file of weights in the work folder, named by its digest or ``initial``. Of every point and
layer one line of JSON is written, of every point, recipe and layer another.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from tools.accuracy.data import load_dataset
from tools.accuracy.gradient_noise import GradientProbe, gradient_noise
from tools.accuracy.networks import NETWORKS, initial_state, model_source, with_new_head
from tools.accuracy.quantizer_variance import layer_gradients, quantizer_variance
from tools.accuracy.rows import ROWS
from tools.accuracy.runner import find_weights, revision
from tools.accuracy.task import Task, make_task
from tools.training import Array

BATCH_SEED = 17
"""Seed of the one batch that all gradients are taken of."""


def add_to(commands: Any) -> None:
    """Add the command ``theory`` to ``commands``."""
    parser = commands.add_parser("theory", help="measure what the theory predicts of the gradients")
    parser.add_argument("--data", required=True)
    parser.add_argument("--network", required=True, choices=list(NETWORKS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=["psq-1", "topk-4", "sampled-4", "once-4"])
    parser.add_argument(
        "--points", nargs="+", default=["initial"], metavar="NAME=WEIGHTS",
        help="points in training: a name, and the digest of the weights; without a digest random ones",
    )  # fmt: skip
    parser.add_argument("--pretrained", nargs="*", default=[], help="digests of weights that get a new classifier")
    parser.add_argument("--draws", type=int, default=64, help="of each recipe (default: %(default)s)")
    parser.add_argument("--quantizer-draws", type=int, default=16, help="of each layer (default: %(default)s)")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines to add to")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure at every point, and add its lines."""
    task = make_task(load_dataset(arguments.data, arguments.work), "transfer", mirrored=arguments.data != "digits")
    network = NETWORKS[arguments.network]
    index = torch.randperm(len(task.train.x), generator=torch.Generator().manual_seed(BATCH_SEED)).numpy()
    x, y = task.augmented(index[: network.batch], (BATCH_SEED, 0))
    probes = {
        row: GradientProbe(network, row, task.classes, network.batch, arguments.work / "artifacts")
        for row in ("none", *arguments.rows)
    }
    common = {"revision": revision(), "data": Path(arguments.data).name, "network": network.name}
    for point in arguments.points:
        name, _, digest = point.partition("=")
        weights = _weights(arguments, task, digest)
        setting = common | {"point": name, "weights": digest or None}
        lines: list[dict[str, Any]] = []
        true = probes["none"].gradients(weights, x, y, 0)
        for row in arguments.rows:
            draws = [probes[row].gradients(weights, x, y, seed) for seed in range(arguments.draws)]
            kind = {"kind": "step", "row": row, "draws": arguments.draws}
            lines += [setting | kind | asdict(noise) for noise in gradient_noise(true, draws)]
            whole = lines[-1]
            found = ", ".join(f"{key} {whole[key]:.3g}" for key in ("variance", "bias", "unbiasedness", "cosine"))
            print(f"{name} {row}: {found}", flush=True)
        for variance in _quantizers(arguments, weights, x, y, task.classes):
            lines.append(setting | {"kind": "quantizer", "draws": arguments.quantizer_draws} | asdict(variance))
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        with arguments.results.open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    return 0


def _weights(arguments: argparse.Namespace, task: Task, digest: str) -> dict[str, Array]:
    network = NETWORKS[arguments.network]
    if not digest:
        return initial_state(network, task.classes, 0)
    weights = find_weights(arguments.work, digest)
    return with_new_head(weights, network, task.classes, 0) if digest in arguments.pretrained else weights


def _quantizers(arguments: argparse.Namespace, weights: dict[str, Array], x: Array, y: Array, classes: int) -> Any:
    source = model_source(NETWORKS[arguments.network], classes, len(x))
    source.module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    source = replace(source, example_inputs=(torch.from_numpy(x), torch.from_numpy(y)))
    for layer, g in layer_gradients(source).items():
        yield quantizer_variance(layer, g, 4, arguments.quantizer_draws)
