"""The digest of a model: the same for the same, in every process, and another for whatever a compilation can see."""

from __future__ import annotations

import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fqt_deploy.build_cache.fingerprint import fingerprint

USERS = """
import math
import torch
from torch import nn
import settings

SCALE = 2.0
TABLE = {"a": [1, 2]}

def helper(x):
    return x * SCALE

class Base(nn.Module):
    def inner(self, x):
        return helper(x) + TABLE["a"][0]

class Model(Base):
    slope = 0.5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(2, 3)
        self.width = 7

    @property
    def factor(self):
        return 3 if settings.DEEP else 4

    def forward(self, x):
        return self.inner(self.linear(x)) * self.factor * self.slope
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., types.ModuleType]:
    """Runs a user's module, whose text may be changed."""

    def load(old: str = "", new: str = "") -> types.ModuleType:
        settings = types.ModuleType("settings")
        settings.__file__ = str(tmp_path / "settings.py")
        settings.DEEP = True  # type: ignore[attr-defined]
        module = types.ModuleType("users")
        module.__file__ = str(tmp_path / "users.py")
        monkeypatch.setitem(sys.modules, "settings", settings)
        monkeypatch.setitem(sys.modules, "users", module)
        assert old in USERS
        exec(compile(USERS.replace(old, new), module.__file__, "exec"), vars(module))
        return module

    return load


def test_the_same_model_has_the_same_digest(users: Callable[..., types.ModuleType]) -> None:
    first = fingerprint(users().Model())
    assert first is not None
    assert fingerprint(users().Model()) == first


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x * SCALE", "x / SCALE"),  # a function that forward's function calls
        ("SCALE = 2.0", "SCALE = 2.5"),  # a global that it reads
        ("[1, 2]", "[3, 2]"),
        ("* self.slope", "- self.slope"),
        ("slope = 0.5", "slope = 0.25"),  # an attribute of the class
        ("3 if", "5 if"),  # a property
        ("self.width = 7", "self.width = 8"),
        ("manual_seed(0)", "manual_seed(1)"),
        ("nn.Linear(2, 3)", "nn.Linear(2, 3, bias=False)"),
        ('    def inner(self, x):\n        return helper(x) + TABLE["a"][0]', "    inner = nn.Identity()"),
    ],
)
def test_another_model_has_another_digest(users: Callable[..., types.ModuleType], old: str, new: str) -> None:
    assert fingerprint(users().Model()) != fingerprint(users(old, new).Model())


@pytest.mark.parametrize(
    "change",
    [
        lambda users, model: setattr(users, "SCALE", 3.0),
        lambda users, model: users.TABLE["a"].append(3),
        lambda users, model: setattr(sys.modules["settings"], "DEEP", False),
        lambda users, model: setattr(users.Model, "slope", 0.1),
        lambda users, model: setattr(users, "helper", lambda x: x),
        lambda users, model: model.eval(),
        lambda users, model: model.linear.weight.data.mul_(2),
        lambda users, model: model.linear.requires_grad_(False),
        lambda users, model: setattr(model.linear, "weight", nn.Parameter(model.linear.weight.double())),
        lambda users, model: model.register_buffer("more", torch.zeros(1)),
        lambda users, model: model.register_forward_hook(lambda *_: None),
    ],
)
def test_what_changes_in_a_process_changes_the_digest(
    users: Callable[..., types.ModuleType], change: Callable[[types.ModuleType, nn.Module], Any]
) -> None:
    module = users()
    model = module.Model()
    before = fingerprint(model)
    assert before is not None
    change(module, model)
    assert fingerprint(model) != before


def test_tied_weights_are_not_equal_weights() -> None:
    one, same = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    same.load_state_dict(one.state_dict())
    tied = nn.Sequential(one, nn.Linear(2, 2, bias=False))
    tied[1].weight = one.weight
    assert fingerprint(tied) != fingerprint(nn.Sequential(one, same))
    x = torch.zeros(4)
    assert fingerprint(x[:2], x[:2]) != fingerprint(x[:2], torch.zeros(2))  # the same memory


def test_closures_are_looked_into() -> None:
    def loss(factor: float) -> Callable[[float], float]:
        return lambda x: x * factor

    assert fingerprint(loss(2.0)) == fingerprint(loss(2.0)) is not None
    assert fingerprint(loss(2.0)) != fingerprint(loss(3.0))


@pytest.mark.parametrize("value", [threading.Lock(), (i for i in "a"), sys.stdout])
def test_what_cannot_be_looked_into_has_no_digest(value: object) -> None:
    model = nn.Linear(1, 1)
    model.value = value
    assert fingerprint(model) is None


def test_parametrized_modules_have_a_digest() -> None:
    def model(gain: float) -> nn.Module:
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
        layer.parametrizations.weight.original0.data.mul_(gain)
        return layer

    assert fingerprint(model(1.0)) == fingerprint(model(1.0)) is not None
    assert fingerprint(model(1.0)) != fingerprint(model(2.0))


@pytest.mark.thorough
def test_another_process_finds_the_same_digest() -> None:
    script = (
        "import torch; from torch import nn; from fqt_deploy.build_cache.fingerprint import fingerprint\n"
        "torch.manual_seed(0); print(fingerprint(nn.TransformerEncoderLayer(8, 2), nn.functional.cross_entropy))"
    )
    found = [
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    ]
    assert found[0] == found[1] != "None\n"
