"""Artifacts are written whole or not at all, and never over something else."""

import dataclasses
import shutil

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest
from fqt_deploy.runtime import folders as module
from fqt_deploy.runtime.artifact import companions, read_artifact, write_artifact


@pytest.fixture
def copied(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "copy")
    return tmp_path / "copy"


def write(folder, source, **changes):
    manifest, state, library = read_artifact(source)
    write_artifact(folder, dataclasses.replace(manifest, **changes), state, library, companions(source))


def test_manifests_survive_json(artifact):
    text = (artifact / "manifest.json").read_text()
    assert Manifest.from_json(text).to_json() == text


@pytest.mark.parametrize("failing", ["write_synced", "sync_folder"])
def test_a_failed_write_leaves_the_old_artifact(copied, monkeypatch, failing):
    before = read_artifact(copied)[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, failing, full)
    with pytest.raises(FqtError, match=r"FQT508.*No space left"):
        write(copied, copied, seed=9)
    assert read_artifact(copied)[0] == before
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


def test_folders_of_others_are_never_replaced(artifact, tmp_path):
    for folder in (tmp_path / "mine", tmp_path / "site"):
        folder.mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "site", "file"):
        with pytest.raises(FqtError, match="FQT508"):
            write(tmp_path / name, artifact)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"
