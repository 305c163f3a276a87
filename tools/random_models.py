"""Random models, each compiled and compared: with eager PyTorch over four steps, and kernel by kernel.

Example: ``python -m tools.random_models --seeds 0:300``.

A seed gives a model: convolutions, linear layers, normalizations, pools, activations, residuals and attention, of odd
sizes, with a batch of 1 to 17. Each is compiled twice: with recipe ``none`` and nothing binarized, whose losses and
state must be those of eager PyTorch; and by default with ``--verify numerics``, which must raise no alarm.

One line for each model as it is done: seed, seconds of CPU time, outcome. Exit status 1 if one fails. The last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fqt_deploy
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.compile_model import compile_model, lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_bits import ActivationBits, WeightBits
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.core.options import CompileOptions, Verification

STEPS = 4
TOLERANCE = 1e-3
"""Relative difference of a loss or a tensor of the state that is rounding."""
SPREAD = 100
"""Upper bound of the distance from PyTorch in float64, in units of that of PyTorch in float32."""
SECONDS = 60
"""Seconds of CPU time that a model may take."""

Choose = random.Random


class Residual(nn.Module):
    """A residual block, ``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """The result of the block, of the shape of ``x``."""
        changed: Tensor = x + self.body(x)
        return changed


class Attention(nn.Module):
    """Self-attention over the tokens ``[batch, tokens, features]``."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(features, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """The result of the block, of the shape of ``x``."""
        attended, _ = self.attention(x, x, x, need_weights=False)
        assert isinstance(attended, Tensor)
        return attended


class Mean(nn.Module):
    """The mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the tokens: ``[batch, tokens, features]`` to ``[batch, features]``."""
        return x.mean(1)


_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.LeakyReLU, nn.Hardswish, nn.Softplus, nn.Identity,
    lambda: nn.GELU(approximate="tanh"), lambda: nn.Hardtanh(-1, 1), nn.ReLU6,
)  # fmt: skip


def random_model(seed: int) -> ModelSource:
    """The model of ``seed`` with its loss and one batch."""
    choose = Choose(seed)
    torch.manual_seed(seed)
    batch = choose.randint(1, 17)
    body, x = choose.choices((_image, _tokens, _vector), (5, 2, 3))[0](choose, batch)
    features = body(x).shape[-1]
    hidden = choose.choice((None, choose.randint(8, 70)))
    outputs = choose.randint(1, 11)
    head = [] if hidden is None else [nn.Linear(features, hidden), choose.choice(_ACTIVATIONS)()]
    head.append(nn.Linear(features if hidden is None else hidden, outputs, bias=choose.random() < 0.8))
    model = nn.Sequential(*body, *head)
    model.train()
    loss_fn, y = _loss(choose, batch, outputs)
    return ModelSource(model, loss_fn, (x, y))


def _loss(choose: Choose, batch: int, outputs: int) -> tuple[Callable[[Any, Tensor], Tensor], Tensor]:
    if outputs == 1 or choose.random() < 0.2:
        return choose.choice((F.mse_loss, F.smooth_l1_loss, F.l1_loss)), torch.randn(batch, outputs)
    labels = torch.randint(0, outputs, (batch,))
    smoothing = choose.choice((0.0, 0.0, 0.1))
    return lambda o, y: F.cross_entropy(o, y, label_smoothing=smoothing), labels


def _image(choose: Choose, batch: int) -> tuple[nn.Sequential, Tensor]:
    x = torch.randn(batch, choose.randint(1, 5), choose.randint(5, 17), choose.randint(5, 17))
    layers: list[nn.Module] = []
    value = x
    for _ in range(choose.randint(1, 4)):
        for layer in _image_block(choose, value):
            layers.append(layer)
            value = layer(value)
    layers += choose.choice(
        ([nn.AdaptiveAvgPool2d(1), nn.Flatten()], [nn.AdaptiveMaxPool2d(1), nn.Flatten()], [nn.Flatten()])
    )
    return nn.Sequential(*layers), x


def _image_block(choose: Choose, x: Tensor) -> list[nn.Module]:
    channels, smallest = x.shape[1], min(x.shape[2:])
    kind = choose.choices(("convolution", "residual", "pool"), (6, 2, 2))[0]
    if kind == "pool" and smallest >= 2:
        size = choose.choice((2, 3)) if smallest >= 3 else 2
        pool = choose.choice((nn.MaxPool2d, nn.AvgPool2d))
        return [
            pool(
                size,
                choose.choice((1, 2)) if size == 3 else 2,
                padding=choose.choice((0, size // 2)) if pool is nn.MaxPool2d else 0,
            )
        ]
    if kind == "residual":
        body = [
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            _image_norm(choose, channels, x.shape[0] * smallest**2),
        ]
        return [Residual(nn.Sequential(*body)), choose.choice(_ACTIVATIONS)()]
    out = choose.choice((3, 8, 13, 16, 24, 33, 40))
    size = choose.choice([k for k in (1, 2, 3, 5) if k <= smallest])
    padding = choose.randint(0, size // 2)
    bias = choose.random() < 0.5
    layer = nn.Conv2d(channels, out, size, stride=choose.choice((1, 1, 2)), padding=padding, bias=bias)
    value = layer(x)
    return [layer, _image_norm(choose, out, value.shape[0] * value[0, 0].numel()), choose.choice(_ACTIVATIONS)()]


def _image_norm(choose: Choose, channels: int, values: int) -> nn.Module:
    groups = choose.choice([g for g in range(1, channels + 1) if channels % g == 0])
    norms: list[nn.Module] = [nn.Identity()]
    if values > 4:
        norms += [nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)]
    if values // max(1, groups) > 4:
        norms.append(nn.GroupNorm(groups, channels) if channels // groups > 1 else nn.Identity())
    return choose.choice(norms)


def _tokens(choose: Choose, batch: int) -> tuple[nn.Sequential, Tensor]:
    heads = choose.choice((1, 2, 3, 4))
    features, tokens = heads * choose.choice((5, 8, 12, 16)), choose.randint(2, 11)
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 2)):
        kind = choose.choice(("attention", "encoder", "feed-forward", "tokens"))
        if kind == "attention":
            layers += [Residual(nn.Sequential(nn.LayerNorm(features), Attention(features, heads)))]
        elif kind == "encoder":
            first = choose.random() < 0.5
            layers += [
                nn.TransformerEncoderLayer(features, heads, 2 * features, 0.0, batch_first=True, norm_first=first)
            ]
        else:
            body = [
                nn.LayerNorm(features),
                nn.Linear(features, 40),
                choose.choice(_ACTIVATIONS)(),
                nn.Linear(40, features),
            ]
            layers += [Residual(nn.Sequential(*body))]
    layers += choose.choice(([Mean()], [nn.Flatten()]))
    return nn.Sequential(*layers), torch.randn(batch, tokens, features)


def _vector(choose: Choose, batch: int) -> tuple[nn.Sequential, Tensor]:
    features = choose.randint(3, 70)
    x = torch.randn(batch, features)
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 3)):
        if choose.random() < 0.3:
            layers.append(Residual(nn.Sequential(nn.Linear(features, features), choose.choice(_ACTIVATIONS)())))
            continue
        out = choose.randint(8, 90)
        norms: list[nn.Module] = [nn.Identity(), nn.LayerNorm(out)]
        if batch > 4:
            norms.append(nn.BatchNorm1d(out))
        layers += [nn.Linear(features, out), choose.choice(norms), choose.choice(_ACTIVATIONS)()]
        features = out
    return nn.Sequential(*layers), x


@dataclass(frozen=True)
class Outcome:
    """The outcome of one model.

    Attributes:
        seed: the seed of the model.
        kind: ``ok``, ``refused``, ``traceback``, ``mismatch``, ``alarm`` or ``slow``.
        text: what is wrong, and where.
        seconds: seconds of CPU time, compilers included.
    """

    seed: int
    kind: str
    text: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.seed}: {self.seconds:.1f} s, {self.kind}" + (f": {self.text}" if self.text else "")


def check(seed: int, *, kernels: bool = True, numerics: bool = True) -> Outcome:
    """Make the model of ``seed``, compile it in both ways and compare.

    Args:
        seed: the seed of the model.
        kernels: whether kernels are compiled; if not, the graphs are captured and lowered.
        numerics: whether what promises the same numbers is checked.
    """
    start = _cpu_seconds()
    try:
        source = random_model(seed)
        kind, text = _compared(source) if kernels else ("ok", "")
        if kind == "ok":
            kind, text = _verified(source, kernels, _options(seed, "numerics" if numerics else "structure"))
    except FqtError as error:
        kind, text = ("traceback" if error.code == "FQT900" else "refused"), f"{error.code}: {error.message}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, text = "traceback", f"{type(error).__name__}: {str(error)[:120]} in {last.filename}:{last.lineno}"
    seconds = _cpu_seconds() - start
    if kind == "ok" and seconds > SECONDS:
        kind, text = "slow", "too much CPU time"
    return Outcome(seed, kind, text.replace("\n", " "), seconds)


def _options(seed: int, verify: Verification) -> CompileOptions:
    """Activations of every width in turn, of 1 bit on both grids, then the same with other weights."""
    widths: tuple[ActivationBits, ...] = (4, 1, 2, 3, 8, 1)
    weights: tuple[WeightBits, ...] = (1, 2, 4)
    place = seed % len(widths)
    return CompileOptions(
        weight_bits=weights[seed // len(widths) % len(weights)],
        activation_bits=widths[place],
        activation_grid="sign" if place == len(widths) - 1 else "fitted",
        verify=verify,
    )


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _compared(source: ModelSource) -> tuple[str, str]:
    """Four steps without anything binarized beside eager PyTorch in float32 and float64."""
    x, y = source.example_inputs
    options = CompileOptions(recipe="none", exclude=("*",), optimizer=SGD(lr=1e-2, momentum=0.9))
    with tempfile.TemporaryDirectory() as folder:
        session = fqt_deploy.load(compile_model(source, options, Path(folder) / "step").output)
        ours = [*(session.step(x, y) for _ in range(STEPS))], session.state_dict(), session.predict(x)
    single = _eager(source, torch.float32)
    double = _eager(source, torch.float64)
    for step, losses in enumerate(zip(ours[0], single[0], double[0], strict=True)):
        if (error := _excess(*losses)) > 1:
            return "mismatch", f"loss of step {step}: {losses[0]:.7g}, PyTorch {losses[1]:.7g} ({error:.1f} times)"
    for name, value in single[1].items():
        if (error := _excess(ours[1][name], value, double[1][name])) > 1:
            return "mismatch", f"{name} after {STEPS} steps ({error:.1f} times what is allowed)"
    if (error := _excess(ours[2], single[2], double[2])) > 1:
        return "mismatch", f"predictions ({error:.1f} times what is allowed)"
    return "ok", ""


def _excess(ours: Any, single: Any, double: Any) -> float:
    """The largest error against float64 as a multiple of what is allowed."""
    ours, single, double = (np.asarray(value, dtype=np.float64) for value in (ours, single, double))
    if not double.size:
        return 0.0
    rounding = float(np.abs(single - double).max())
    allowed = max(TOLERANCE * max(1.0, float(np.abs(double).max())), SPREAD * rounding)
    return float(np.abs(ours - double).max()) / allowed


def _eager(source: ModelSource, dtype: torch.dtype) -> tuple[list[float], dict[str, Any], Any]:
    model = copy.deepcopy(source.module).to(dtype)
    x, y = (given.to(dtype) if given.is_floating_point() else given for given in source.example_inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = source.loss_fn(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    with torch.no_grad():
        return losses, state, model.eval()(x).numpy()


def _verified(source: ModelSource, kernels: bool, options: CompileOptions) -> tuple[str, str]:
    """The default recipe, each kernel and each exact pass beside PyTorch."""
    if not kernels:
        checks = lower_model(source, options).pass_checks
        wrong = [f"pass {check.name}: {check.where} by {check.error:.1e}" for check in checks if not check.ok]
        return ("alarm", "; ".join(wrong)) if wrong else ("ok", "")
    with tempfile.TemporaryDirectory() as folder:
        report = compile_model(source, options, Path(folder) / "step").verification
    if report is None:
        return "ok", ""
    wrong = [f"{row.op} of {row.layer} ({row.direction}) by {row.error:.1e}" for row in report.rows if not row.ok]
    wrong += [f"pass {check.name}: {check.where} by {check.error:.1e}" for check in report.passes if not check.ok]
    return ("alarm", "; ".join(wrong)) if wrong else ("ok", "")


def main() -> int:
    """Parse the command line, check all seeds, and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seeds", default="0:300", help="first, end and step, such as 0:300 or 1:300:2, or single ones: 3,17"
    )
    parser.add_argument("--passes-only", action="store_true", help="capture and lower, but compile no kernels")
    arguments = parser.parse_args()
    if ":" in arguments.seeds:
        seeds = range(*map(int, arguments.seeds.split(":")))
    else:
        seeds = [int(seed) for seed in arguments.seeds.split(",")]  # type: ignore[assignment]
    outcomes = []
    for seed in seeds:
        outcomes.append(check(seed, kernels=not arguments.passes_only))
        print(outcomes[-1], flush=True)
    counts = Counter(outcome.kind for outcome in outcomes)
    slowest = max(outcomes, key=lambda outcome: outcome.seconds)
    summary = {
        "models": len(outcomes),
        **counts,
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "slowest": [slowest.seed, round(slowest.seconds, 1)],
    }
    print(json.dumps(summary))
    return 0 if counts.keys() <= {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
