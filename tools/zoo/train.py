"""Train a model of the zoo: with the default recipe, verified, and with recipe ``none`` against eager PyTorch."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.optimizer import SGD
from fqt_deploy.settings import options_of
from tools.zoo.build import ZooModel

STEPS = 20
"""Number of steps on one batch, on which the loss must fall."""
COMPARED_STEPS = 4
LOSS_TOLERANCE, STATE_TOLERANCE = 1e-4, 1e-3
"""Relative to 1 or to the largest magnitude, whichever is larger."""
DROPOUTS = (
    "drop_prob", "dropout", "activation_dropout", "attention_dropout", "dropout_prob", "layerdrop",
    "attention_probs_dropout_prob",
)  # fmt: skip
"""Attributes of modules that say how much is dropped."""


def default_recipe(model: ZooModel) -> dict[str, Any]:
    """Compile with verified numerics and train on one batch."""
    begun = time.perf_counter()
    source = model_source(model.module, model.loss, model.batch)
    with tempfile.TemporaryDirectory() as folder:
        result = compile_model(source, options_of({"verify": "numerics", "lr": 2e-3}), Path(folder) / "model.fqt")
        compiled_s = time.perf_counter() - begun
        report = result.verification
        assert report is not None
        wrong = [f"{row.op} {row.layer} {row.direction} {row.error}" for row in report.rows if not row.ok]
        wrong += [f"{check.name} {check.where} {check.error}" for check in report.passes if not check.ok]
        session = fqt_deploy.load(result.output)
        batch = [tensor.numpy() for tensor in model.batch]
        losses = [float(session.step(*batch)) for _ in range(STEPS)]
    fell = sum(losses[-4:]) / 4 < sum(losses[:3]) / 3
    return {
        "ok": not wrong and fell,
        "wrong": wrong[:6],
        "losses": [round(losses[step], 4) for step in (0, 5, 10, STEPS - 1)],
        "one_bit": sum(layer.decision == "1-bit" for layer in result.manifest.layers),
        "layers": len(result.manifest.layers),
        "kernels": len(report.rows),
        "compile_and_verify_s": round(compiled_s, 1),
    }


def against_eager(model: ZooModel, rate: float) -> dict[str, Any]:
    """Train at ``rate`` with recipe ``none`` and nothing in 1 bit beside eager PyTorch, both without dropout."""
    without_dropout(model.module)
    eager = copy.deepcopy(model.module).train()
    settings: dict[str, Any] = {"recipe": "none", "exclude": ("*",), "optimizer": SGD(lr=rate, momentum=0.9)}
    step = fqt_deploy.compile(model.module, model.loss, example_inputs=model.batch, **settings)
    optimizer = torch.optim.SGD(eager.parameters(), lr=rate, momentum=0.9)
    x, y = model.batch
    loss_error = 0.0
    for _ in range(COMPARED_STEPS):
        optimizer.zero_grad()
        expected = model.loss(eager(x), y)
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss_error = max(loss_error, abs(float(step(x, y)) - expected.item()) / max(1.0, abs(expected.item())))
    state_error, where = state_difference(step.state_dict(), eager.state_dict())
    ok = loss_error < LOSS_TOLERANCE and state_error < STATE_TOLERANCE
    return {"ok": ok, "loss_error": loss_error, "state_error": state_error, "worst_state": where}


def state_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest difference of a tensor that both have, relative to its magnitude if that is above 1, and its name."""
    errors = {}
    for name, expected in theirs.items():
        if name in ours and expected.numel():
            scale = max(1.0, float(expected.double().abs().max()))
            errors[name] = float((ours[name].double() - expected.double()).abs().max()) / scale
    where = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
    return errors[where], where


def without_dropout(module: nn.Module) -> None:
    """Let ``module`` drop nothing: random numbers of the step are not those of PyTorch."""
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
