"""Artifacts are read only whole and unchanged, and nothing in them runs before that is known."""

import hashlib
import json
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import OLDEST_SCHEMA, SCHEMA_VERSION, Manifest
from fqt_deploy.runtime.artifact import companions, read_artifact, read_sums, write_artifact

OTHER_ARCH = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]

MEMBERS = {"notes.json",
    "manifest.json", "step.so", "state.safetensors", "lib/libtvm_runtime.so", "licenses/apache-tvm-LICENSE",
    "licenses/apache-tvm-NOTICE", "licenses/compiler-rt-LICENSE",
}  # fmt: skip


@pytest.fixture
def artifact(digits_artifact, tmp_path):
    shutil.copytree(digits_artifact, tmp_path / "digits.fqt")
    return tmp_path / "digits.fqt"


def write_sums(folder):
    """Make the digests those of the files as they are now."""
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in read_sums(folder)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_manifest(folder, **fields):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | fields))
    write_sums(folder)


def refused(folder, code, text):
    """Loading fails with ``code``, and TVM's loader has not been called."""
    program = (
        "import sys, fqt_deploy, fqt_deploy.runtime.library as library\n"
        "def never(*_): raise AssertionError('a library was loaded')\n"
        "library.load_runtime = never\n"
        "try: fqt_deploy.load(sys.argv[1])\n"
        "except fqt_deploy.FqtError as error: print(error.code, error.message, error.hint)"
    )
    command = [sys.executable, "-c", program, str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.startswith(code), said
    assert text in said, said


def test_layout(artifact):
    members = {str(path.relative_to(artifact)) for path in artifact.rglob("*") if path.is_file()}
    assert members == MEMBERS | {"SHA256SUMS"}
    assert set(read_sums(artifact)) == MEMBERS
    assert "Apache License" in (artifact / "licenses" / "apache-tvm-LICENSE").read_text()
    check = subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=artifact, capture_output=True)
    assert check.returncode == 0, check


@pytest.mark.parametrize(
    "member",
    ["manifest.json", "step.so", "state.safetensors", "lib/libtvm_runtime.so", "licenses/apache-tvm-LICENSE"],
)
@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_members_are_refused(artifact, member, damage):
    path = artifact / member
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 1])
    path.unlink()
    if damage == "changed":
        path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif damage == "truncated":
        path.write_bytes(content[:middle])
    missing_manifest = (member, damage) == ("manifest.json", "missing")
    with pytest.raises(FqtError, match=path.name) as caught:
        read_artifact(artifact)
    assert caught.value.code == ("FQT501" if missing_manifest else "FQT502")


def test_a_damaged_library_is_not_loaded(artifact):
    with (artifact / "step.so").open("r+b") as file:
        file.truncate(1000)
    refused(artifact, "FQT502", "step.so is not the file")


@pytest.mark.parametrize(("version", "hint"), [(SCHEMA_VERSION + 1, "newer"), (OLDEST_SCHEMA - 1, "compile")])
def test_other_versions_are_refused_whatever_else_they_hold(artifact, version, hint):
    change_manifest(artifact, schema_version=version, unheard_of=True)
    (artifact / "SHA256SUMS").unlink()
    refused(artifact, "FQT503", hint)


def test_an_artifact_for_another_kind_of_machine_is_refused(artifact):
    target = Manifest.from_json((artifact / "manifest.json").read_bytes()).target
    change_manifest(artifact, target=target | {"arch": OTHER_ARCH})
    refused(artifact, "FQT402", f"compiled for {OTHER_ARCH}")


def test_an_artifact_for_a_larger_processor_is_refused(artifact, monkeypatch, tmp_path):
    target = Manifest.from_json((artifact / "manifest.json").read_bytes()).target
    change_manifest(artifact, target=target | {"mcpu": "znver9", "requires": target["requires"] + " avx4096"})
    refused(artifact, "FQT402", "compiled for znver9; this machine's processor lacks avx4096")
    monkeypatch.setattr("fqt_deploy.runtime.processor.CPUINFO", tmp_path / "absent")
    read_artifact(artifact)  # where the kernel does not tell, it is tried


@pytest.mark.parametrize(
    ("sums", "text"),
    [
        ("", "does not list manifest.json"),
        ("0123  step.so\n", "malformed"),
        (f"{'0' * 64}  ../elsewhere\n", "malformed"),
        (f"{'0' * 64}  /etc/passwd\n", "malformed"),
    ],
)
def test_malformed_sums_are_refused(artifact, sums, text):
    (artifact / "SHA256SUMS").write_text(sums)
    with pytest.raises(FqtError, match=text) as caught:
        read_artifact(artifact)
    assert caught.value.code == "FQT502"


@pytest.mark.parametrize(
    ("field", "value"), [("inputs", 3), ("seed", "zero"), ("state", [{"name": "param/x"}]), ("unheard_of", 1)]
)
def test_a_malformed_manifest_is_refused(artifact, field, value):
    change_manifest(artifact, **{field: value})
    with pytest.raises(FqtError, match=field) as caught:
        read_artifact(artifact)
    assert caught.value.code == "FQT502"


def test_a_state_that_does_not_fit_is_refused(artifact):
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["state"][0]["shape"][0] += 1
    change_manifest(artifact, state=manifest["state"])
    with pytest.raises(FqtError, match="expected") as caught:
        read_artifact(artifact)
    assert caught.value.code == "FQT502"


def test_a_saved_session_is_an_artifact_of_its_own(artifact, tmp_path, digits_source):
    x, y = digits_source.example_inputs
    session = fqt_deploy.load(artifact)
    session.lr = 0.125
    session.step(x, y)
    (tmp_path / "moved.fqt").mkdir()
    session.save(tmp_path / "moved.fqt")
    shutil.rmtree(artifact)
    moved = fqt_deploy.load(tmp_path / "moved.fqt")
    assert set(read_sums(tmp_path / "moved.fqt")) == MEMBERS
    assert (moved.lr, moved.step_count) == (0.125, 1)
    assert moved.step(x, y) == session.step(x, y)


def test_replacing_an_artifact_keeps_checkpoints_and_drops_old_members(artifact, digits_artifact, digits_source):
    (artifact / "checkpoint.safetensors").write_bytes(b"precious")
    (artifact / "lib" / "libold.so").write_bytes(b"")
    with (artifact / "SHA256SUMS").open("a") as file:
        file.write(f"{hashlib.sha256(b'').hexdigest()}  lib/libold.so\n")
    manifest, state, library = read_artifact(digits_artifact)
    write_artifact(artifact, manifest, state, library, companions(digits_artifact))
    assert (artifact / "checkpoint.safetensors").read_bytes() == b"precious"
    assert not (artifact / "lib" / "libold.so").exists()
    assert np.isfinite(fqt_deploy.load(artifact).step(*digits_source.example_inputs))


@pytest.mark.parametrize("label", [10, 5000, 2**31, 2**32, -1, 2**62])
def test_a_manifest_that_takes_labels_which_are_none_makes_no_finite_step(artifact, label):
    """The library trusts no range: the loss is NaN, nothing beside a tensor is read, and no other sample's gradient."""
    inputs = json.loads((artifact / "manifest.json").read_text())["inputs"]
    hostile = {"low": -(2**62), "high": 2**62 + 1, "ignore_index": None}
    change_manifest(artifact, inputs=[inputs[0], inputs[1] | {"values": hostile}], classes=None)
    session = fqt_deploy.load(artifact)
    x = np.random.default_rng(0).standard_normal(inputs[0]["shape"]).astype(np.float32)
    y = np.arange(len(x)) % 10
    assert np.isfinite(session.step(x, y))
    y[3] = label
    assert np.isnan(session.step(x, y))
    with pytest.raises(FqtError, match="FQT511"):
        session.step(x, y, check=True)
