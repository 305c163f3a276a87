"""Where a run is in its data, with one process and with several."""

from types import SimpleNamespace

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import InputSpec, TensorSpec, Variant
from fqt_deploy.runtime.training import Place, plan_of


def session(steps=0, processes=None, batches=(8,)):
    """What a plan asks of a session."""
    variants = [
        Variant(
            i, (InputSpec("x", (batch, 4), "float32", "input"),), TensorSpec("logits", (batch, 2), "float32"), (), ()
        )
        for i, batch in enumerate(batches)
    ]
    group = None if processes is None else SimpleNamespace(size=processes, rank=0)
    return SimpleNamespace(group=group, manifest=SimpleNamespace(variants=variants), step_count=steps)


def test_one_process_goes_by_its_steps():
    plan = plan_of(session(), 50, 3, {})
    assert plan.sizes == (8,) * 6
    assert plan.total == 18
    assert plan.place(0) == Place(0, 0, 0)
    assert plan.place(7) == Place(7, 1, 8)
    assert plan.place(18) == Place(18, 3, 0)
    assert plan.starts(Place(7, 1, 8)) == [8, 16, 24, 32, 40, 48]


def test_several_processes_share_each_step():
    plan = plan_of(session(processes=3), 50, 2, {})
    assert plan.sizes == (8, 8)
    assert plan.starts(Place(0, 0, 0)) == [0, 24, 48]
    assert plan.place(3) == Place(3, 1, 24)
    assert plan.total == 4


def test_another_number_of_processes_goes_on_in_the_epoch():
    """After one step of two processes, 16 of 50 samples, one process has four batches left."""
    kept = {"place": '{"step": 1, "epoch": 0, "samples": 16}'}
    plan = plan_of(session(steps=1), 50, 2, kept)
    assert plan.starts(plan.place(1)) == [16, 24, 32, 40, 48]
    assert plan.place(5) == Place(5, 1, 0)
    assert plan.total == 1 + 4 + 6


def test_a_rest_too_small_for_the_processes_of_now_ends_the_epoch():
    plan = plan_of(session(steps=5, processes=2), 50, 2, {"place": '{"step": 5, "epoch": 0, "samples": 40}'})
    assert plan.place(5) == Place(5, 1, 0)
    assert plan.total == 5 + 3


def test_smaller_batches_follow():
    plan = plan_of(session(batches=(8, 3)), 15, 2, {})
    assert plan.sizes == (8, 3, 3)
    assert [plan.place(step) for step in (1, 2, 4)] == [Place(1, 0, 8), Place(2, 0, 11), Place(4, 1, 8)]
    assert plan.total == 6


@pytest.mark.parametrize("text", ["[", "[]", '{"step": 1}', '{"step": 1, "epoch": "x", "samples": 0}'])
def test_a_damaged_place_is_refused(text):
    with pytest.raises(FqtError) as raised:
        plan_of(session(), 50, 2, {"place": text})
    assert raised.value.code == "FQT502"
