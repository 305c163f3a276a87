r"""Fine-tune mixtures of layers from full-precision weights, beside what the planner says of them.

Example: ``python -m tools.plan_accuracy --data cifar10.npz --network vgg6 --weights w.safetensors --steps 200 \
--seeds 0 1 --mixtures 4 2 1 fp32 a.plan.toml --random 6 --results plans.jsonl``.

A mixture is a number of bits for all layers, ``fp32``, or a plan; ``--random`` adds as many mixtures. The task is the
study's (``tools.accuracy``): the second half of the classes, from weights of the first. Each line of the results is one
run: the mixture, the planner's noise of its parts and of the whole, its loss before and after, its accuracy.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_plan import SUFFIX, read_plan
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.planning.choices import CHOICES, Choice, options_for
from fqt_deploy.planning.layer_noise import FULL, NoiseMeter
from fqt_deploy.settings import options_of
from tools.accuracy.data import load_dataset
from tools.accuracy.networks import NETWORKS, Calibration, Network, model_source, with_new_head
from tools.accuracy.task import Task, make_task
from tools.training import accuracy, batches, cosine

LAST = 20
"""Number of steps that the loss at the end is a mean of."""


def mixture_of(spelled: str, layers: list[str]) -> dict[str, Choice]:
    """The choice of each of ``layers`` in the mixture that is spelled as on the command line."""
    if not spelled.endswith(SUFFIX):
        return dict.fromkeys(layers, None if spelled == "fp32" else int(spelled))
    plan = read_plan(Path(spelled))
    bits = {each.pattern: each.activations for each in plan.bits}
    found: dict[str, Choice] = {}
    for path in layers:
        glob = next((glob for glob in bits if fnmatchcase(path, glob)), None)
        in_fp32 = glob is None or any(fnmatchcase(path, each) for each in plan.exclude)
        found[path] = None if in_fp32 or glob is None else bits[glob]
    return found


def random_mixtures(layers: list[str], count: int) -> dict[str, dict[str, Choice]]:
    """Mixtures of every kind, the same ones every time: from hardly any layers in fp32 to most of them."""
    generator = random.Random(0)
    found: dict[str, dict[str, Choice]] = {}
    for number in range(count):
        share = number / max(1, count - 1) * 0.8
        found[f"random {number}"] = {
            path: None if generator.random() < share else generator.choice(CHOICES[1:]) for path in layers
        }
    return found


def train(folder: Path, task: Task, start: Mapping[str, Any], batch: int, *, steps: int, lr: float, seed: int) -> Any:
    """Fine-tune the step in ``folder``, and return its results."""
    session = fqt_deploy.load(folder)
    session.load_state_dict(start)
    session.seed = seed
    losses, seconds = [], []
    for step, index in enumerate(batches(len(task.train.x), batch, steps, seed)):
        images, labels = task.augmented(index, (seed, step))
        session.lr = cosine(lr, step, steps)
        begun = time.perf_counter()
        losses.append(session.step(images, labels))
        seconds.append(time.perf_counter() - begun)
    return {
        "first_loss": round(losses[0], 4),
        "last_loss": round(statistics.fmean(losses[-LAST:]), 4),
        "accuracy": round(accuracy(session, task.normalized(task.test.x), task.test.y), 4),
        "step_s": round(statistics.median(seconds), 5),
    }


def noise_of(meter: NoiseMeter, singles: dict[tuple[str, int], float], mixture: Mapping[str, Choice]) -> dict[str, Any]:
    """The noise of a mixture: sums of its layers', of their weights alone and of all, and that of the whole."""
    bits = {path: choice for path, choice in mixture.items() if choice is not None}

    def single(path: str, choice: int) -> float:
        if (path, choice) not in singles:
            singles[path, choice] = meter.noise({path: choice})
        return singles[path, choice]

    together, loss = meter.measured(bits)
    return {
        "weights": round(sum(single(path, FULL) for path in bits), 4),
        "sum": round(sum(single(path, choice) for path, choice in bits.items()), 4),
        "together": round(together, 4),
        "loss_before": round(loss, 4),
    }


def run(arguments: argparse.Namespace) -> None:
    """Measure and train each mixture, and append a line for each run that is not among the results yet."""
    network: Network = NETWORKS[arguments.network]
    data = load_dataset(arguments.data, arguments.work)
    task = make_task(data, "transfer", mirrored=arguments.data != "digits")
    start = with_new_head(load_file(arguments.weights), network, task.classes, 0)
    x, y = task.normalized(task.train.x[: network.batch]), task.train.y[: network.batch]
    source: ModelSource = model_source(network, task.classes, network.batch, calibration=Calibration(start, x, y))
    options: CompileOptions = options_of({"optimizer": "adam", "weight_decay": 1e-5})
    meter = NoiseMeter(source, options)
    layers = [record.path for record in meter.layers]
    mixtures = {each: mixture_of(each, layers) for each in arguments.mixtures}
    mixtures |= random_mixtures(layers, arguments.random)
    singles: dict[tuple[str, int], float] = {}
    done = arguments.results.read_text() if arguments.results.exists() else ""
    known = [json.loads(line) for line in done.splitlines()]
    for seed in arguments.seeds:
        for name, mixture in mixtures.items():
            told = {"network": network.name, "steps": arguments.steps, "lr": arguments.lr, "seed": seed}
            key = {**told, "mixture": [mixture[path] for path in layers]}
            if any(key.items() <= record.items() for record in known):
                continue
            results: dict[str, Any] = {}
            with tempfile.TemporaryDirectory() as folder:
                artifact, steps, lr = Path(folder) / "step", arguments.steps, arguments.lr
                if steps:
                    compile_model(source, options_for(options, mixture), artifact)
                    results = train(artifact, task, start, network.batch, steps=steps, lr=lr, seed=seed)
            with torch.no_grad():
                line = {**key, "name": Path(name).name, **noise_of(meter, singles, mixture), **results}
            with arguments.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


def main(given: list[str] | None = None) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="digits, or path of CIFAR-10 or of a folder of images")
    parser.add_argument("--network", required=True, choices=list(NETWORKS))
    parser.add_argument("--weights", type=Path, required=True, help="full-precision weights, a .safetensors file")
    parser.add_argument("--steps", type=int, required=True, help="0 measures the noise alone")
    parser.add_argument("--lr", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--mixtures", nargs="*", default=[], metavar="MIXTURE", help="bits, fp32, or a plan")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="so many random mixtures more")
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines to add to")
    parser.add_argument("--work", type=Path, default=Path("build/accuracy"), help="decoded images")
    try:
        run(parser.parse_args(given))
    except FqtError as error:
        print(error.render(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
