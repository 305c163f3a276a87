"""Profiles of artifacts: what is measured belongs to the step, and every multiply-accumulate to a row."""

import dataclasses
import shutil

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.step_notes import NOTES
from fqt_deploy.profiling.profile_artifact import profile_artifact
from fqt_deploy.profiling.rows import class_rows, layer_rows
from fqt_deploy.profiling.step_profile import read_profile
from fqt_deploy.runtime.kernel_clock import KernelClock


def batch_of(session):
    x, y = session.manifest.inputs
    return np.zeros(x.shape, "float32"), np.zeros(y.shape, "int64")


def test_steps_and_losses_are_the_same_with_a_clock(digits_artifact):
    plain, timed = fqt_deploy.load(digits_artifact), fqt_deploy.load(digits_artifact)
    clock = KernelClock(timed)
    for _ in range(3):
        with clock:
            loss = timed.step(*batch_of(timed))
            calls = clock.take()
        assert loss == plain.step(*batch_of(plain))
        assert len(calls.begin) == len(timed.manifest.kernels)
        assert (calls.end >= calls.begin).all()
        assert (calls.begin[1:] >= calls.end[:-1]).all()
    for name, array in plain.tensors().items():
        assert np.array_equal(array, timed.tensors()[name]), name


def test_two_steps_are_not_taken_for_one(digits_artifact):
    session = fqt_deploy.load(digits_artifact)
    with KernelClock(session) as clock:
        session.step(*batch_of(session))
        session.step(*batch_of(session))
        with pytest.raises(FqtError, match="kernels in a step") as caught:
            clock.take()
    assert "one step at a time" in caught.value.render()
    session.step(*batch_of(session))


def test_kernels_lie_within_their_steps_and_fill_them(profile):
    for step in profile.timed:
        assert step.begin <= step.kernels[0][0]
        assert step.kernels[-1][1] <= step.end
    assert 0 < profile.kernels_s <= max(profile.timed_seconds)
    assert len(profile.steps) >= 3


def test_rows_hold_every_kernel_once(profile):
    for rows in (layer_rows(profile), class_rows(profile)):
        assert sum(row.calls for row in rows) == len(profile.kernels)
        assert sum(row.seconds for row in rows) == pytest.approx(profile.kernels_s)
        assert sum(row.share for row in rows) == pytest.approx(1)
        assert sum(row.bytes for row in rows) == sum(kernel.bytes_moved for kernel in profile.kernels)


def test_every_multiply_accumulate_of_forward_belongs_to_its_layer(profile, digits_source):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, depth=9) as counter, torch.no_grad():
        digits_source.call.outputs(digits_source.module, digits_source.example_inputs)
    name = type(digits_source.module).__name__
    expected = {path.removeprefix(f"{name}."): sum(f.values()) // 2 for path, f in counter.get_flop_counts().items()}
    rows = {row.layer: row for row in layer_rows(profile) if row.direction == "forward"}
    for layer in profile.layers:
        products = [k for k in profile.kernels if (k.layer == layer.path and "conv2d" in k.op) or k.op == "linear"]
        assert products
        row = rows[layer.path]
        macs = row.bit_macs / layer.activation_bits if layer.decision == "1-bit" else row.fp32_macs
        assert macs == pytest.approx(expected[layer.path], rel=0.01), layer.path


def test_fp32_layers_have_both_directions(profile):
    found = {(row.layer, row.direction) for row in layer_rows(profile)}
    assert {("features.0", "forward"), ("features.0", "weight_grad")} <= found
    assert {("classifier", d) for d in ("forward", "input_grad", "weight_grad", "optimizer")} <= found


def test_memory_is_alive_between_first_and_last_use(profile):
    alive = profile.notes.alive(len(profile.kernels))
    by_hand = [
        sum(size for size, first, last in profile.notes.values if first <= i <= last)
        for i in range(len(profile.kernels))
    ]
    assert alive == by_hand
    assert max(alive) <= sum(profile.notes.blocks)
    assert 0 < min(profile.notes.kept.values()) < 1


def test_a_saved_profile_reads_back(profile, tmp_path):
    profile.save(tmp_path / "p.json")
    assert read_profile(tmp_path / "p.json") == dataclasses.replace(profile)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fqt_profile": 1}', '{"fqt_profile": 1, "notes": 3}'])
def test_a_damaged_profile_is_refused(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(FqtError, match="FQT502"):
        read_profile(tmp_path / "p.json")


def test_damaged_notes_are_refused(digits_artifact, tmp_path):
    from fqt_deploy.core.step_notes import StepNotes

    for text in (b"{", b"[]", b'{"blocks": [], "values": [[1, 2, 1]]}', b'{"blocks": [], "values": [[1, 0, 9]]}'):
        with pytest.raises(FqtError, match="FQT502"):
            StepNotes.from_json(text, 9)
    shutil.copytree(digits_artifact, tmp_path / "d.fqt")
    (tmp_path / "d.fqt" / NOTES).write_text("{}")
    with pytest.raises(FqtError, match="FQT502"):
        profile_artifact(tmp_path / "d.fqt", steps=1)


def test_loading_is_noted_beside_the_steps(digits_artifact, digits, tmp_path):
    images, labels = digits
    np.savez(tmp_path / "data.npz", x=images[:40].numpy(), y=labels[:40].numpy())
    profile = profile_artifact(digits_artifact, data=tmp_path / "data.npz", steps=2)
    assert len(profile.loads) >= 2 * 2
    assert all(begin < end for begin, end in profile.loads)
    np.savez(tmp_path / "few.npz", x=images[:4].numpy(), y=labels[:4].numpy())
    with pytest.raises(FqtError, match="FQT510"):
        profile_artifact(digits_artifact, data=tmp_path / "few.npz")
