"""State that begins as zeros takes no bytes in an artifact, and is there when it is loaded."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import StateSpec
from fqt_deploy.runtime.arrays import is_ready
from fqt_deploy.runtime.zero_state import stored_state, with_absent_zeros
from tests.runtime.test_artifact import change_manifest, write_sums

SPECS = (
    StateSpec("param/w", (3, 4), "float32", "param"),
    StateSpec("buffer/mean", (3,), "float32", "buffer"),
    StateSpec("adam_m/w", (3, 4), "float32", "optimizer"),
    StateSpec("ema/w", (3, 4), "float32", "optimizer"),
    StateSpec("metric/norm", (), "float32", "metric"),
    StateSpec("step", (), "int64", "counter"),
)


def state():
    arrays = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in SPECS}
    arrays["ema/w"][1, 2] = -0.0  # whose bits are not all zero
    return arrays


def test_zeros_of_optimizers_and_metrics_are_left_out():
    stored = stored_state(SPECS, state())
    assert [*stored] == ["param/w", "buffer/mean", "ema/w", "step"]
    found = with_absent_zeros(SPECS, stored)
    assert found.keys() == {spec.name for spec in SPECS}
    for spec in SPECS:
        assert found[spec.name].tobytes() == state()[spec.name].tobytes()
        assert (found[spec.name].shape, found[spec.name].dtype) == (spec.shape, spec.dtype)
    assert is_ready(found["adam_m/w"])


def test_nothing_is_left_out_that_would_not_come_back():
    specs = (*SPECS[1:2], *SPECS[2:3])  # moments larger than all else
    stored = stored_state(specs, state())
    assert [*stored] == ["buffer/mean", "adam_m/w"]
    assert with_absent_zeros(SPECS, {"step": np.zeros((), np.int64)}).keys() == {"step", "metric/norm"}


@pytest.fixture
def artifact(digits_artifact, tmp_path):
    shutil.copytree(digits_artifact, tmp_path / "digits.fqt")
    return tmp_path / "digits.fqt"


def test_an_artifact_begins_with_the_zeros_that_it_does_not_hold(artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    arrays = load_file(artifact / "state.safetensors")
    moments = {spec["name"] for spec in manifest["state"] if spec["role"] == "optimizer"}
    assert moments
    assert {spec["name"] for spec in manifest["state"]} - arrays.keys() == moments
    tensors = fqt_deploy.load(artifact).tensors()
    assert not any(np.from_dlpack(tensors[name]).any() for name in moments)


def test_an_older_artifact_with_all_its_zeros_is_the_same(artifact, digits):
    x, y = (tensor[:8].numpy() for tensor in digits)
    expected = [fqt_deploy.load(artifact).step(x, y) for _ in range(2)]
    manifest = json.loads((artifact / "manifest.json").read_text())
    zeros = {spec["name"]: np.zeros(spec["shape"], spec["dtype"]) for spec in manifest["state"]}
    save_file({**zeros, **load_file(artifact / "state.safetensors")}, artifact / "state.safetensors")
    change_manifest(artifact, schema_version=4)
    assert [fqt_deploy.load(artifact).step(x, y) for _ in range(2)] == expected


def test_a_trained_artifact_holds_its_moments(artifact, digits, tmp_path):
    x, y = (tensor[:8].numpy() for tensor in digits)
    session = fqt_deploy.load(artifact)
    session.step(x, y)
    session.save(tmp_path / "later.fqt")
    again = fqt_deploy.load(tmp_path / "later.fqt")
    assert any(name.startswith("adam_v/") for name in load_file(tmp_path / "later.fqt" / "state.safetensors"))
    assert session.step(x, y) == again.step(x, y)


@pytest.mark.parametrize("role", ["param", "buffer", "counter"])
def test_other_state_must_be_there(artifact, role):
    manifest = json.loads((artifact / "manifest.json").read_text())
    victim = next(spec["name"] for spec in manifest["state"] if spec["role"] == role)
    arrays = load_file(artifact / "state.safetensors")
    save_file({name: array for name, array in arrays.items() if name != victim}, artifact / "state.safetensors")
    write_sums(artifact)
    with pytest.raises(FqtError, match=f"{victim} is missing") as caught:
        fqt_deploy.load(artifact)
    assert caught.value.code == "FQT502"


def test_zeros_larger_than_all_that_is_stored_are_refused(artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    victim = next(spec for spec in manifest["state"] if spec["role"] == "optimizer")
    victim["shape"] = [2**40]
    change_manifest(artifact, state=manifest["state"])
    with pytest.raises(FqtError, match=f"{victim['name']} is missing") as caught:
        fqt_deploy.load(artifact)
    assert caught.value.code == "FQT502"
