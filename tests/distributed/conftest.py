"""Artifacts for several processes, and torchrun."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource, model_source
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.settings import options_of

WORKER = Path(__file__).with_name("worker.py")
PLAIN = {
    "recipe": "none", "exclude": ("*",), "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "clip_norm": 0.5,
    "accumulate": 2, "ema": 0.9,
}  # fmt: skip
TOGETHER = {**PLAIN, "distributed": "fp32", "batch_norm": "synchronized"}
_SGD = ("optimizer", "lr", "momentum")
CODED = {
    **{name: value for name, value in TOGETHER.items() if name not in _SGD},
    "recipe": "scq", "exclude": ("0", "5"), "distributed": "4-bit", "optimizer": "adam", "lr": 0.01, "moment_bits": 8,
}  # fmt: skip
"""Codes on the wire and in the moments of the larger weight, which both processes must round alike."""
BATCH = 8


def example(batch):
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(batch) % 10


def source(*batches) -> ModelSource:
    """A network whose samples meet in batch normalization. Its weights are the same for every batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Sequential(nn.BatchNorm2d(8), nn.Hardtanh()), nn.Flatten(),
        nn.Linear(8 * 36, 33), nn.Sequential(nn.BatchNorm1d(33), nn.Hardtanh()), nn.Linear(33, 10),
    )  # fmt: skip
    return model_source(model, None, [example(batch) for batch in batches])


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiles the network once for each set of options; returns the artifact."""
    found: dict[str, Path] = {}

    def artifact(*batches, **settings) -> Path:
        key = repr((batches, sorted(settings.items())))
        if key not in found:
            found[key] = tmp_path_factory.mktemp("distributed") / "model.fqt"
            compile_model(source(*(batches or (BATCH,))), options_of(settings), found[key])
        return found[key]

    return artifact


@pytest.fixture(scope="session")
def digits_file(tmp_path_factory):
    """96 labelled images in a file."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    random = np.random.default_rng(0)
    y = random.integers(0, 10, 100)
    x = random.standard_normal((100, 1, 8, 8)).astype("float32") + y[:, None, None, None] / 5
    np.savez(path, x=x.astype("float32"), y=y)
    return path


def environment():
    """The environment of processes of one thread each."""
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "FQT_NUM_THREADS", "TVM_NUM_THREADS")}
    return {**os.environ, **threads, "PYTHONPATH": str(Path(__file__).parents[2])}


def start(command, **variables):
    """Starts a command as a session of its own, which says all in one stream."""
    return subprocess.Popen(
        list(map(str, command)), env={**environment(), **variables}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def outcome(process, timeout=120):
    """Exit status and output of a process."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        raise
    return process.returncode, output


def launch(*arguments, ranks=2):
    """Starts a script in several processes, as a launcher that is not torchrun does."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    return [start([sys.executable, *arguments], **variables, RANK=str(rank)) for rank in range(ranks)]


def torchrun(*arguments, ranks=2, restarts=0, wait=True):
    """Runs a script, or a module after ``-m``, in several processes of one thread each."""
    process = start([
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks, "--max-restarts", restarts,
        "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *arguments,
    ])  # fmt: skip
    return outcome(process) if wait else process
