"""The model that was compiled warns where a loop goes on with it; copies and models with other weights do not."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from fqt_deploy.build_cache.fingerprint import fingerprint
from fqt_deploy.core.one_compilation import one_at_a_time
from fqt_deploy.untrained_model import MESSAGE, warn_of_untrained


class Step:
    """What a notice asks of a step."""

    step_count = 0


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def step(model: nn.Module) -> Any:
    step: Any = Step()
    warn_of_untrained(model, step)
    return step


def warned(function: Any) -> list[Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return caught


def test_it_warns_once_of_either_after_a_step(model: nn.Module, step: Any) -> None:
    x = torch.zeros(4, 3)
    assert not warned(lambda: (model(x), model.state_dict()))
    step.step_count = 1
    (first,) = warned(lambda: (model(x), model(x)))
    assert (str(first.message), first.filename) == (MESSAGE, __file__)
    assert len(warned(lambda: (model.state_dict(), model.state_dict()))) == 1


def test_other_weights_and_copies_are_silent(model: nn.Module, step: Any) -> None:
    step.step_count = 1
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert not warned(lambda other=other: (other(torch.zeros(4, 3)), other.state_dict()))
    model.load_state_dict({name: value + 1 for name, value in copies[0].state_dict().items()})
    assert not warned(lambda: (model(torch.zeros(4, 3)), model.state_dict()))


def test_a_compilation_is_silent(model: nn.Module, step: Any) -> None:
    step.step_count = 1
    assert not warned(one_at_a_time(lambda: model(torch.zeros(4, 3))))


def test_a_model_outlives_its_step_and_is_the_same_to_the_cache(model: nn.Module) -> None:
    before = fingerprint(model)
    step: Any = Step()
    warn_of_untrained(model, step)
    assert fingerprint(model) == before
    del step
    gc.collect()
    assert not model._forward_pre_hooks
    assert not model._state_dict_pre_hooks
