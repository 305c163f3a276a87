"""Train small forms of people's scripts in eager PyTorch and as compiled steps, on the same batches.

Example: ``python -m tools.compare_learning --data cifar10.npz --scripts unet --rows eager default --seeds 0 1``.
A row is a name of ``ROWS``; ``--rate 3`` takes three times the script's learning rate. It prints the mean loss of the
last 40 steps, and adds a line of JSON for each run to ``--results``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fqt_deploy
from tools.accuracy.data import Dataset
from tools.learning_scripts import SCRIPTS, Batch, Script, load_images

ROWS: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "default": {},
    "sampled": {"agp": "sampled"},
    "scq": {"recipe": "scq", "grad_bits": 4},
    "none": {"recipe": "none"},
    "close": {"preset": "close"},
    "none, weights of 4 bits": {"recipe": "none", "weight_bits": 4},
    "weights of 2 bits": {"weight_bits": 2},
    "weights of 4 bits": {"weight_bits": 4},
    "scq, weights of 2 bits": {"recipe": "scq", "grad_bits": 4, "weight_bits": 2},
    "scq, weights of 4 bits": {"recipe": "scq", "grad_bits": 4, "weight_bits": 4},
    "scq of 8 bits, weights of 4 bits": {"recipe": "scq", "grad_bits": 8, "weight_bits": 4},
    "none, activations of 8 bits": {"recipe": "none", "activation_bits": 8},
    "gpt: fc and out in fp32": {"exclude": ("*.fc", "*.out")},
    "gpt: attention in fp32": {"exclude": ("*.attn", "*.proj")},
    "unet: none, time in fp32": {"recipe": "none", "exclude": ("time*", "*.t")},
    "unet: none, skip, up, down in fp32": {"recipe": "none", "exclude": ("*skip", "up", "down")},
    "unet: skip, up, down in fp32": {"exclude": ("*skip", "up", "down")},
    "simclr: none, shortcuts and head in fp32": {"recipe": "none", "exclude": ("*short*", "head*")},
    "mobilenet: none, conv1 in fp32": {"recipe": "none", "exclude": ("*conv1",)},
    "mobilenet: none, conv3 in fp32": {"recipe": "none", "exclude": ("*conv3",)},
}
"""Settings of the compiled step by row; None is eager PyTorch."""
LAST = 40
"""The result is the mean loss of so many steps."""


def main() -> None:
    """Train what is asked for, one run after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10, as tools.accuracy takes it")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["eager", "default", "scq", "none"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rate", type=float, default=1.0, help="a factor of the script's learning rate")
    parser.add_argument("--every", type=int, default=1, help="take every so many samples of each batch")
    parser.add_argument("--steps", type=int, help="by default those of the script")
    parser.add_argument("--results", type=Path, help="add a line of JSON for each run to this file")
    args = parser.parse_args()
    data = load_images(args.data)
    for name in args.scripts:
        for row in args.rows:
            for seed in args.seeds:
                script = thinned_script(SCRIPTS[name], args.every)
                losses = train(script, data, ROWS[row], seed, args.rate, args.steps or script.steps)
                found = summary(losses)
                print(f"{name}, {row}, seed {seed}: {found['last']:.4f}", flush=True)
                if args.results is not None:
                    run = {"script": name, "row": row, "seed": seed, "rate": args.rate, "steps": len(losses), **found}
                    run |= {"every": args.every} if args.every > 1 else {}
                    with args.results.open("a") as file:
                        file.write(json.dumps(run) + "\n")


def thinned_script(script: Script, every: int) -> Script:
    """The script with every so many samples of its batches."""

    def batches(data: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
        for batch in script.batches(data, rng):
            x, y = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: tensor[::every].contiguous(), batch)
            yield x, y

    return dataclasses.replace(script, batches=batches) if every > 1 else script


def summary(losses: list[float]) -> dict[str, float]:
    """The first loss, and the means of the last steps of half of the run and of all of it."""
    half = len(losses) // 2
    means = {"half": losses[max(0, half - LAST // 2) : half] or losses[:1], "last": losses[-LAST:]}
    return {"first": losses[0], **{name: float(np.mean(part)) for name, part in means.items()}}


def train(
    script: Script, data: Dataset, settings: dict[str, Any] | None, seed: int, factor: float, steps: int
) -> list[float]:
    """The loss of each step.

    Args:
        script: what is trained.
        data: CIFAR-10.
        settings: of the compiled step; None for eager PyTorch.
        seed: of weights, batches and the random numbers of the step.
        factor: of the learning rate.
        steps: how many.
    """
    torch.manual_seed(seed)
    model = script.build()
    if script.pretraining is not None:
        model.load_state_dict(_pretrained(script, data))
    batches = script.batches(data, np.random.default_rng(1000 + seed))
    example = next(batches)
    optimizer = torch.optim.Adam(model.parameters(), lr=script.rate * factor)
    step = (
        _eager(model, script, optimizer)
        if settings is None
        else _compiled(model, script, optimizer, example, seed, settings)
    )
    return _losses(step, batches, optimizer, steps)


@lru_cache(maxsize=1)
def _pretrained(script: Script, data: Dataset) -> dict[str, Tensor]:
    """The state of a script's network after its pretraining in eager PyTorch, the same for all seeds."""
    assert script.pretraining is not None
    torch.manual_seed(0)
    model = script.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=script.pretraining.rate)
    batches = script.pretraining.batches(data, np.random.default_rng(1000))
    _losses(_eager(model, script, optimizer), batches, optimizer, script.pretraining.steps)
    return model.state_dict()


def _losses(
    step: Callable[[Any, Any], float], batches: Iterator[Batch], optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    """The losses of ``steps`` steps at rates that rise for 20 of them and fall to 0 along half a cosine."""
    losses, rate = [], optimizer.param_groups[0]["lr"]
    for number in range(steps):
        share = 0.5 * (1 + math.cos(math.pi * number / steps)) * min(1, (number + 1) / 20)
        optimizer.param_groups[0]["lr"] = rate * share
        losses.append(step(*next(batches)))
    return losses


def _eager(model: nn.Module, script: Script, optimizer: torch.optim.Optimizer) -> Callable[[Any, Any], float]:
    def step(x: Any, y: Any) -> float:
        optimizer.zero_grad()
        loss = script.loss(model(*x) if isinstance(x, tuple) else model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def _compiled(
    model: nn.Module,
    script: Script,
    optimizer: torch.optim.Optimizer,
    example: Batch,
    seed: int,
    settings: dict[str, Any],
) -> Callable[[Any, Any], float]:
    compiled = fqt_deploy.compile(
        model, script.loss, example_inputs=example, optimizer=optimizer, seed=seed, **settings
    )

    def step(x: Any, y: Any) -> float:
        inputs = x if isinstance(x, tuple) else (x,)
        return float(compiled(*inputs) if y is None else compiled(*inputs, y))

    return step


if __name__ == "__main__":
    main()
