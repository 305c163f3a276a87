"""The verdict names what costs time, from profiles made by hand."""

import dataclasses

import pytest

from fqt_deploy.core.manifest import KernelInfo, LayerDecision
from fqt_deploy.profiling.ceilings import Ceilings
from fqt_deploy.profiling.machine import Machine
from fqt_deploy.profiling.rows import SORTS, in_model_order, layer_rows
from fqt_deploy.profiling.step_profile import StepProfile, TorchTimes
from fqt_deploy.profiling.tables import comparison_text, profile_text
from fqt_deploy.profiling.verdict import verdict


def made(kernels, **others):
    """A profile of ``(op, layer, phase, seconds, bytes)``."""
    infos = tuple(
        KernelInfo(f"fqt_{i}", op, layer, phase, 200, 0, b) for i, (op, layer, phase, _, b) in enumerate(kernels)
    )
    seconds = tuple(s for *_, s, _ in kernels)
    layers = (LayerDecision("a", "linear", "1-bit", "default"), LayerDecision("b", "linear", "fp32", "last"))
    given = {
        "name": "made", "machine": Machine("P", "x86_64", 2, 2), "target": {}, "versions": {}, "options": {},
        "optimizer": "adam", "batch": 4, "layers": layers, "kernels": infos, "seconds": seconds,
        "steps": (sum(seconds),) * 4, "timed": (), "timed_seconds": (sum(seconds),),
        "ceilings": Ceilings(1e9, 1e9, 1e9),
        "other_cores": 0.0, "notes": None, "state_bytes": 0,
    }  # fmt: skip
    return StepProfile(**{**given, **others})


PRODUCT = ("binary_conv2d", "a", "forward", 0.010, 100)


@pytest.mark.parametrize(
    ("kernels", "others", "said"),
    [
        ([PRODUCT], {}, "1-bit products take most, 100 %"),
        ([PRODUCT, ("attention", "b", "forward", 0.020, 1)], {}, "attention takes 67 % of the step"),
        ([PRODUCT, ("adam_update", "a", "optimizer", 0.001, 900)], {}, "the optimizer moves 90 % of the bytes"),
        ([PRODUCT], {"torch": TorchTimes({}, {"fp32": {"a forward": 0.005}})}, "a does not pay in 1 bit"),
        ([PRODUCT], {"torch": TorchTimes({"fp32": 0.05, "bf16": 0.04}, {})}, "4.0 times as fast as PyTorch's fastest"),
        ([PRODUCT], {"torch": TorchTimes({"fp32": 0.005}, {})}, "2.0 times as slow as"),
        ([PRODUCT], {"steps": (0.02,) * 4}, "50 % of the step is outside of kernels"),
        ([PRODUCT], {"loads": ((0, 20_000_000),)}, "the loader takes 20.0 ms for a batch"),
    ],
)
def test_what_costs_is_said(kernels, others, said):
    profile = made(kernels, **others)
    assert any(said in sentence for sentence in verdict(profile)), verdict(profile)


def test_what_pays_is_not_blamed():
    pays = made([PRODUCT], torch=TorchTimes({}, {"fp32": {"a forward": 0.015}}))
    assert not any("does not pay" in sentence for sentence in verdict(pays))
    (row,) = layer_rows(pays)
    assert row.speedup == pytest.approx(1.5)


def test_a_busy_machine_is_told():
    busy = made([PRODUCT], other_cores=0.5)
    assert busy.doubts == ["other processes used 0.5 cores meanwhile"]
    assert "warning: other processes used 0.5 cores" in profile_text(busy, layer_rows(busy))
    unsteady = made([PRODUCT], steps=(0.01, 0.01, 0.02, 0.02, 0.02))
    assert len(unsteady.doubts) == 1
    assert "measure again" in verdict(unsteady)[0]
    assert not any("measure again" in sentence for sentence in verdict(made([PRODUCT])))
    theirs = made([PRODUCT], torch=TorchTimes({"fp32": 1.0}, {}, other_cores=1.3))
    assert theirs.doubts == ["other processes used 1.3 cores while PyTorch was measured"]
    assert made([PRODUCT]).doubts == []


def test_directions_of_fp32_layers_come_from_their_ops():
    rows = layer_rows(made([
        ("linear", "b", "forward", 1.0, 1), ("linear_input_grad", "b", "backward", 2.0, 1),
        ("linear_weight_grad", "b", "backward", 3.0, 1), ("sum", "b", "backward", 0.5, 1),
    ]))  # fmt: skip
    assert [(row.direction, row.seconds) for row in rows] == [
        ("forward", 1.0), ("input_grad", 2.0), ("weight_grad", 3.0), ("backward", 0.5),
    ]  # fmt: skip
    assert next(row.direction for row in sorted(rows, key=SORTS["time"])) == "weight_grad"


def test_a_module_with_attention_runs_as_attention():
    kernels = [
        ("attention", "m", "forward", 1.0, 1),
        ("permute", "m", "forward", 2.0, 1),
        ("sum", "n", "forward", 1.0, 1),
    ]
    assert [row.runs_as for row in layer_rows(made(kernels))] == ["attention", "element-wise and sums"]


def test_roofline_is_the_slowest_ceiling():
    (row,) = layer_rows(made([PRODUCT], ceilings=Ceilings(fp32_macs=1e5, bytes=1e5)))
    assert row.roofline_s == pytest.approx(1e-3)
    assert row.roofline_share == pytest.approx(0.1)


def test_profiles_are_compared():
    first = made([PRODUCT])
    other = dataclasses.replace(made([("linear", "b", "forward", 0.005, 1)]), name="other")
    lines = comparison_text([first, other]).splitlines()
    assert lines[0].split() == ["layer", "direction", "made", "other"]
    assert lines[1].split() == ["a", "forward", "10.000"]
    assert lines[-1].split() == ["step", "10.000", "5.000"]


def test_levels_of_activations_are_told():
    layers = (LayerDecision("a", "linear", "1-bit", "default", activation_bits=4),)
    profile = made([PRODUCT], layers=layers)
    assert any("100 % of the step, on activations of 4 bits: --activation-bits 1 or 2" in s for s in verdict(profile))
    assert not any("activations of" in sentence for sentence in verdict(made([PRODUCT])))


def test_what_is_far_from_the_ceilings_is_named():
    slow = made([PRODUCT], ceilings=Ceilings(fp32_macs=1e6, bytes=1e6))
    assert any("most in a forward (10.0 ms, 1 % of the ceiling)" in sentence for sentence in verdict(slow))


def test_rows_are_in_the_order_of_the_model():
    paths = [
        "(step)",
        "stem.0",
        "stem.1",
        "b.1.conv",
        "b.10.conv",
        "b.2.conv",
        "b.2",
        "head",
        "b.1",
        "b.1.act",
        "stem.2",
    ]
    assert in_model_order(paths) == [
        "stem.0", "stem.1", "stem.2", "b.1.conv", "b.1.act", "b.1", "b.2.conv", "b.2", "b.10.conv", "head", "(step)",
    ]  # fmt: skip
