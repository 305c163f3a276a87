"""What each process of the tests does: ``worker.py OUT``; file OUT comes to name artifacts, results go beside it."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.distributed import join_group
from fqt_deploy.runtime.group import rank_seed

STEPS = 4


def batches(size):
    """``STEPS`` batches of ``size`` samples, the same in every process."""
    random = np.random.default_rng(5)
    for _ in range(STEPS):
        yield random.standard_normal((size, 1, 8, 8)).astype("float32"), random.integers(0, 10, size)


def train(session, group, out, batch=None):
    """Train on this process's part of each batch; write what came of it."""
    rank, size = (group.rank, group.size) if group is not None else (0, 1)
    batch = batch or session.manifest.batch
    losses = []
    for step, (x, y) in enumerate(batches(size * batch)):
        if rank and step == 1 and out.endswith("plain"):
            time.sleep(1.5)  # to be slow is no reason to be given up
        losses.append(session.step(x[rank * batch : (rank + 1) * batch], y[rank * batch : (rank + 1) * batch]))
    session.synchronize()
    sent = group.sent_bytes if group is not None else 0
    state = {name.replace("/", "|"): array for name, array in session.tensors().items()}
    np.savez(f"{out}.{rank}.npz", losses=losses, sent=sent, seed=session._seed, **state)


def refusal(action):
    """The code of the error that ``action`` raises."""
    try:
        action()
    except FqtError as error:
        return error.code
    return "none"


def scripted_step(seed):
    """What a script compiles, with parameters of its own, and the batch that it trains on."""
    torch.manual_seed(seed)
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    return fqt_deploy.compile(torch.nn.Linear(5, 3), example_inputs=(x, y), recipe="none", distributed="fp32"), x, y


def main():
    group = join_group()
    (out,) = sys.argv[1:]
    step, x, y = scripted_step(group.rank)
    loss = step(x, y)
    np.savez(f"{out}.script.{group.rank}.npz", loss=loss, weight=step.state_dict()["weight"], x=x)
    while not Path(out).exists():  # the one who waits for this process ends it
        time.sleep(0.05)
    plain, coded, alone = Path(out).read_text().splitlines()
    for name, artifact in (("plain", plain), ("coded", coded)):
        session = fqt_deploy.load(artifact)
        session.seed = 7 + 10 * group.rank  # that of process 0 counts
        session.join(group)
        assert session.seed == 7
        assert int(session._seed) == rank_seed(7, group.rank)
        train(session, group, f"{out}.{name}")
    codes = [refusal(lambda: fqt_deploy.load(alone).join(group))]
    codes.append(refusal(lambda: fqt_deploy.load(plain if group.rank else coded).join(group)))
    session = fqt_deploy.load(plain)
    session.join(group)
    x, y = next(batches(2 * session.manifest.batch))
    session.step(x[group.rank :: 2], y[group.rank :: 2])
    own = {f"own|{n.removeprefix('buffer/')}": a.copy() for n, a in session.tensors().items() if n.startswith("buffer")}
    mean = session.tensors()["buffer/1.0.running_mean"]
    mean[0] = group.rank
    session.synchronize()
    mean = float(mean[0])
    session.tensors()["param/0.bias"][0] += group.rank
    codes.append(refusal(session.synchronize))
    np.savez(f"{out}.codes.{group.rank}.npz", codes=codes, mean=mean, **own)
    group.close()


if __name__ == "__main__":
    main()
