"""Time one compiled training step beside PyTorch's in every configuration, and compare peak memory.

Example: ``python -m tools.bench_step --model vgg16 --batch 128 --threads 2 --recipe scq+agp --agp once``.

A step is forward, loss, backward and Adam on both sides, on the same batch and number of threads. All contenders run in
one process, in turn, ``--repeats`` times; their medians count. Memory is measured in a process of its own for each
side, at the peak of three steps: what the resident set has grown by since the imports (``peak_mem``), and what of that
belongs to the step itself (``step_mem``), without parameters, optimizer state and the batch. Then every kernel of ours
is timed, and the sums by class are printed beside the least time that the machine's measured ceilings allow. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from fqt_deploy.core.options import Sampling
from tools.examples import EXAMPLES, compile_example, load_example
from tools.step_breakdown import table

if TYPE_CHECKING:
    from fqt_deploy.capture.load_model import ModelSource
    from fqt_deploy.core.manifest import Manifest

MINIMUM_TURN_S = 0.2
"""A contender's turn lasts at least this long: a short step is repeated within it."""
SLOW_S = 10.0
"""A step that takes longer than this is warm after one call."""
HOPELESS = 4
"""Multiple of the fastest configuration's time after which another is not the best."""
WARM_UP = 2
MEMORY_STEPS = 3
TOLERATED_CORES = 0.1
"""Number of cores that other processes may use; more disturbs parallel code, PyTorch's far beyond its share."""
SEED = 0

Step = Callable[[], Any]


@dataclass(frozen=True)
class TorchConfiguration:
    """One way to run a training step in PyTorch.

    Attributes:
        compiled: through ``torch.compile``.
        channels_last: memory format of model and images.
        bf16: under autocast.
    """

    compiled: bool = False
    channels_last: bool = False
    bf16: bool = False

    @property
    def name(self) -> str:
        """The name of the configuration, for example ``compile_bf16_channels_last``."""
        parts = ["compile" if self.compiled else "eager", "bf16" if self.bf16 else "fp32"]
        return "_".join([*parts, *(["channels_last"] if self.channels_last else [])])


def configurations(*, compiled: bool) -> tuple[TorchConfiguration, ...]:
    """All combinations; those of ``torch.compile`` only if it can run."""
    return tuple(
        TorchConfiguration(through, last, bf16)
        for through in ((False, True) if compiled else (False,))
        for bf16 in (False, True)
        for last in (False, True)
    )


def torch_step(source: ModelSource, configuration: TorchConfiguration, adam: Mapping[str, Any]) -> Step:
    """A training step of the model itself; it returns the loss.

    Args:
        source: model, loss and batch; the model is changed.
        configuration: how to run it.
        adam: keyword arguments of ``torch.optim.Adam``.
    """
    import torch

    model = source.module.train()
    x, y = source.example_inputs
    if configuration.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    optimizer = torch.optim.Adam(model.parameters(), **adam)

    def loss_of(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return source.loss_fn(model(inputs), targets)

    forward = torch.compile(loss_of) if configuration.compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16) if configuration.bf16 else nullcontext():
            loss = forward(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def fastest_adam(source: ModelSource, lr: float) -> dict[str, Any]:
    """Arguments of ``torch.optim.Adam`` for the implementation that updates this model fastest here."""
    import torch

    candidates: dict[str, dict[str, Any]] = {name: {"lr": lr, name: True} for name in ("foreach", "fused")}
    candidates["default"] = {"lr": lr}
    seconds: dict[str, float] = {}
    for name, adam in candidates.items():
        parameters = [parameter.detach().clone() for parameter in source.module.parameters()]
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer = torch.optim.Adam(parameters, **adam)
        seconds[name] = min(_seconds(optimizer.step, 1) for _ in range(5))
    return candidates[min(seconds, key=lambda name: seconds[name])]


def our_step(artifact: Path, source: ModelSource) -> Step:
    """A step of the compiled artifact on the example batch; it returns the loss."""
    import fqt_deploy

    session = fqt_deploy.load(artifact)
    x, y = (tensor.numpy() for tensor in source.example_inputs)
    return lambda: session.step(x, y)


def calls_in_a_turn(steps: Mapping[str, Step]) -> dict[str, int]:
    """Warm up every step, a slow one by one call; how many calls of it make a turn."""
    calls: dict[str, int] = {}
    for name, step in steps.items():
        if _seconds(step, 1) > SLOW_S:
            calls[name] = 1
            continue
        for _ in range(WARM_UP - 1):
            step()
        calls[name] = max(1, math.ceil(MINIMUM_TURN_S / _seconds(step, 1)))
    return calls


def interleaved_times(steps: Mapping[str, Step], calls: Mapping[str, int], repeats: int) -> dict[str, list[float]]:
    """Seconds of each step in each of its turns; contenders alternate, so that a slow moment hits all of them alike.

    A configuration of PyTorch that took ``HOPELESS`` times as long as the fastest of them has no second turn: without
    bf16 instructions a step takes minutes.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats):
        fastest = min((min(found) for name, found in times.items() if found and name != "ours"), default=math.inf)
        for name, step in steps.items():
            if turn == 0 or name == "ours" or times[name][0] <= HOPELESS * fastest:
                times[name].append(_seconds(step, calls[name]))
    return times


def _seconds(step: Step, calls: int) -> float:
    """Mean seconds of ``calls`` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def summarize(times: Mapping[str, list[float]], memory: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The numbers of the last line, from each contender's times (``ours``, configuration names) and peak memory."""
    seconds = {name: statistics.median(found) for name, found in times.items()}
    best = {}
    for dtype in ("fp32", "bf16"):
        names = [name for name in seconds if dtype in name.split("_")]
        best[dtype] = min(names, key=lambda name: seconds[name])
    ours = seconds["ours"]
    return {
        "ours_s": ours,
        "eager_fp32_s": seconds["eager_fp32"],
        "best_fp32_s": seconds[best["fp32"]],
        "best_bf16_s": seconds[best["bf16"]],
        "ratio_best_fp32": seconds[best["fp32"]] / ours,
        "ratio_best_bf16": seconds[best["bf16"]] / ours,
        "best_fp32": best["fp32"],
        "best_bf16": best["bf16"],
        "peak_mem_ours_mb": memory["ours"]["mb"],
        "peak_mem_torch_mb": memory["torch"]["mb"],
        "step_mem_ours_mb": memory["ours"]["step_mb"],
        "step_mem_torch_mb": memory["torch"]["step_mb"],
        "ratio_step_mem": memory["torch"]["step_mb"] / memory["ours"]["step_mb"],
        "median_s": seconds,
        "fastest_s": {name: min(found) for name, found in times.items()},
    }


# What the processes of one benchmark do. The first one imports neither torch nor NumPy: a process counts the peak
# memory of the one that started it as its own.


def task_compile(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compile the example into the artifact folder."""
    chosen = {
        "preset": arguments.preset,
        "recipe": arguments.recipe,
        "agp": arguments.agp,
        "grad_bits": arguments.grad_bits,
        "weight_bits": arguments.weight_bits,
        "activation_bits": arguments.activation_bits,
        "activation_grid": arguments.activation_grid,
        "remat": arguments.remat,
        "optimizer": arguments.optimizer,
    }
    settings = {name: value for name, value in chosen.items() if value is not None}
    start = time.perf_counter()
    result = compile_example(load_example(arguments.model, arguments.batch), settings, arguments.artifact)
    optimizer = result.manifest.optimizer
    return {
        "batch": result.manifest.batch,
        "recipe": result.manifest.options,
        "lr": optimizer.groups[0]["lr"],
        "compile_s": time.perf_counter() - start,
    }


def task_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """The seconds of a step by contender and turn."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    source = load_example(arguments.model, arguments.batch)
    adam = fastest_adam(source, float(source.options.get("lr", 1e-3)))
    compiled = not arguments.skip_compile and any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    steps = {"ours": our_step(arguments.artifact, source)}
    for configuration in configurations(compiled=compiled):
        own = load_example(arguments.model, arguments.batch)
        steps[configuration.name] = torch_step(own, configuration, adam)
    calls = calls_in_a_turn(steps)  # torch.compile starts other processes
    others, start = seconds_of_others(), time.perf_counter()
    times = interleaved_times(steps, calls, arguments.repeats)
    cores = (seconds_of_others() - others) / (time.perf_counter() - start)
    return {"times": times, "adam": adam, "cores_of_others": cores}


def task_memory_ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak growth of the resident set over our steps, in MB."""
    import fqt_deploy
    from fqt_deploy.core.manifest import Manifest
    from fqt_deploy.profiling.measure import made_up_batch

    manifest = Manifest.from_json((arguments.artifact / "manifest.json").read_bytes())
    batch = made_up_batch(manifest)
    load = fqt_deploy.load  # imports the runtime
    before = _peak_mb()
    session = load(arguments.artifact)
    step_mb = _growth_mb(lambda: session.step(batch))
    peak_mb = _peak_mb() - before
    return {"mb": peak_mb, "step_mb": step_mb - _unwritten_mb(arguments.artifact, manifest)}


def _unwritten_mb(artifact: Path, manifest: Manifest) -> float:
    """Megabytes of state that begins as zeros, such as Adam's moments: resident once the first step has written it."""
    import numpy as np
    from safetensors import safe_open

    from fqt_deploy.runtime.artifact import STATE

    with safe_open(artifact / STATE, framework="np") as file:
        stored = set(file.keys())
    return sum(spec.size * np.dtype(spec.dtype).itemsize for spec in manifest.state if spec.name not in stored) / 1e6


def task_memory_torch(arguments: argparse.Namespace) -> dict[str, Any]:
    """Peak growth of the resident set over PyTorch's eager fp32 steps, in MB."""
    import torch

    from fqt_deploy.capture.load_model import ModelSource, load_model

    torch.set_num_threads(arguments.threads)
    tiny = ModelSource(torch.nn.Linear(2, 2), torch.nn.functional.mse_loss, (torch.ones(1, 2), torch.ones(1, 2)))
    torch_step(tiny, TorchConfiguration(), {"fused": True})()  # imports what a first step imports
    before = _peak_mb()
    source = load_model(EXAMPLES[arguments.model], batch=arguments.batch)
    moments = (
        2 * sum(p.numel() * p.element_size() for p in source.module.parameters()) / 1e6
    )  # Adam's first step makes them
    step_mb = _growth_mb(torch_step(source, TorchConfiguration(), {"fused": True})) - moments
    return {"mb": _peak_mb() - before, "step_mb": step_mb}


def task_breakdown(arguments: argparse.Namespace) -> dict[str, Any]:
    """The time of our kernels by class, beside the machine's ceilings."""
    import torch

    from tools.step_breakdown import break_down_artifact

    torch.set_num_threads(arguments.threads)
    return break_down_artifact(arguments.artifact, arguments.threads)


def _growth_mb(step: Step) -> float:
    """Megabytes that the resident set grows by, at its peak over some steps, beyond what it is before the first."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_mb("VmRSS")
    for _ in range(MEMORY_STEPS):
        step()
    return _status_mb("VmHWM") - before


def _status_mb(entry: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e6


def seconds_of_others() -> float:
    """Core seconds that this machine has spent so far, without those of this process."""
    user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _peak_mb() -> float:
    """Largest resident set of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB


TASKS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "compile": task_compile,
    "memory-ours": task_memory_ours,
    "memory-torch": task_memory_torch,
    "time": task_time,
    "breakdown": task_breakdown,
}
"""The tasks that a child process may be told to do, in order."""


def _child(task: str, artifact: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run ``task`` in a process of its own; returns what it found."""
    print(f"{task} ...", file=sys.stderr, flush=True)
    environment = os.environ | {"FQT_NUM_THREADS": str(arguments.threads), "OMP_NUM_THREADS": str(arguments.threads)}
    command = [sys.executable, "-m", "tools.bench_step", *sys.argv[1:], "--task", task, "--artifact", str(artifact)]
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        print(finished.stdout, file=sys.stderr)  # TVM's script parser writes what is wrong to stdout
        raise SystemExit(f"{task}: the child process ended with exit code {finished.returncode}")
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All tasks; returns the content of the last line."""
    found = {task: _child(task, folder / "step.fqt", arguments) for task in TASKS}
    memory = {"ours": found["memory-ours"], "torch": found["memory-torch"]}
    summary = summarize(found["time"]["times"], memory)
    print(f"{'ms a step':28} {'median':>10} {'fastest':>10}")
    for name, seconds in sorted(summary["median_s"].items(), key=lambda item: item[1]):
        print(f"{name:28} {1e3 * seconds:10.2f} {1e3 * summary['fastest_s'][name]:10.2f}")
    print(table(found["breakdown"]["classes"]))
    timing = {name: found["time"][name] for name in ("adam", "cores_of_others")}
    if timing["cores_of_others"] > TOLERATED_CORES:
        cores = f"{timing['cores_of_others']:.2f} cores"
        print(f"warning: other processes used {cores}: measure again on a quiet machine", file=sys.stderr)
    first = {"model": arguments.model, "threads": arguments.threads, **found["compile"]}
    return {**first, **timing, "breakdown": found["breakdown"], **summary}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=sorted(EXAMPLES), default="vgg16")
    parser.add_argument("--batch", type=int, help="samples in a step (default: the example's)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all of this machine"
    )
    parser.add_argument("--preset", choices=["fast", "close"])
    parser.add_argument("--recipe", choices=["none", "psq-8", "psq-1", "scq", "scq+agp"])
    parser.add_argument("--agp", choices=get_args(Sampling))
    parser.add_argument("--remat", choices=["off", "auto"])
    parser.add_argument("--grad-bits", type=int, choices=[1, 2, 3, 4, 8])
    parser.add_argument("--weight-bits", type=int, choices=[1, 2, 4])
    parser.add_argument("--activation-bits", type=int, choices=[1, 2, 3, 4, 8])
    parser.add_argument("--activation-grid", choices=["sign", "fitted"])
    parser.add_argument(
        "--optimizer", default="adam", help="what our step ends with; PyTorch's ends with Adam (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="turns of every contender (default: %(default)s)")
    parser.add_argument(
        "--skip-compile", action="store_true", help="leave torch.compile out: it takes minutes to start"
    )
    parser.add_argument("--task", choices=list(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the benchmark, or, in a child process, one of its tasks."""
    arguments = parse()
    if arguments.task is not None:
        print(json.dumps(TASKS[arguments.task](arguments)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(arguments, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
