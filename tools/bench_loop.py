"""Time the step of ``examples/training`` with all that its loop does around it, beside the bare compiled step.

Example: ``python -m tools.bench_loop --batch 128 --steps 8 --turns 9``.

The loop's step has decay groups, clipping by norm, label smoothing, and takes the learning rates of a scheduler before
each step; the bare one is the same model with AdamW and cross-entropy alone. Both take turns on the same batch of
tensors. The last line is JSON: the medians in seconds, their ratio, and the medians of the ratios of the turns, by time
and by the time of all cores, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import fqt_deploy

EXAMPLE = Path(__file__).parents[1] / "examples" / "training" / "cifar10.py"


def example() -> ModuleType:
    """The module that both loops of the example share."""
    spec = importlib.util.spec_from_file_location("cifar10", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def steps(batch: int, width: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of the loop with its scheduler, and the bare one."""
    shared = example()
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    model = shared.resnet(width)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(shared.decay_groups(model, 0.05), lr=2e-3)
    rise, fall = LinearLR(optimizer, 0.01, total_iters=100), CosineAnnealingLR(optimizer, 10_000)
    scheduler = SequentialLR(optimizer, [rise, fall], milestones=[100])
    ours = fqt_deploy.compile(model, loss_fn, example_inputs=(x, y), optimizer=optimizer, clip_norm=1.0)
    bare = fqt_deploy.compile(model, example_inputs=(x, y), optimizer=fqt_deploy.AdamW(lr=2e-3))

    def step_of_loop() -> None:
        ours(x, y)
        scheduler.step()

    return step_of_loop, lambda: bare(x, y)


def seconds(step: Callable[[], Any], count: int) -> tuple[float, float]:
    """The time of one of ``count`` steps, and that of all cores together."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return (time.perf_counter() - begin) / count, (time.process_time() - begin_cpu) / count


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage; 64 is ResNet-18")
    parser.add_argument("--steps", type=int, default=8, help="in a turn")
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    pair = steps(arguments.batch, arguments.width)
    for step in pair:
        seconds(step, 2)
    turns = [tuple(seconds(step, arguments.steps) for step in pair) for _ in range(arguments.turns)]
    loop, bare = (statistics.median(wall for wall, _ in column) for column in zip(*turns, strict=True))
    by_turn = statistics.median(ours[0] / alone[0] for ours, alone in turns)
    cores = statistics.median(ours[1] / alone[1] for ours, alone in turns)
    found = {"loop": loop, "bare": bare, "ratio": loop / bare, "by_turn": by_turn, "by_cores": cores}
    print(json.dumps({"batch": arguments.batch, **found}))


if __name__ == "__main__":
    main()
