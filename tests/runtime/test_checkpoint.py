"""Checkpoints: atomic, of this model only, and resuming is as if one had not stopped."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime import files
from fqt_deploy.runtime.checkpoint import load_checkpoint, save_checkpoint
from fqt_deploy.runtime.epoch_record import EpochRecord


def batches(count, seed=0):
    generator = np.random.default_rng(seed)
    return [
        (generator.standard_normal((4, 1, 8, 8)).astype(np.float32), generator.integers(0, 10, 4)) for _ in range(count)
    ]


def test_resuming_is_as_if_one_had_not_stopped(artifact, session, tmp_path):
    first, second = batches(3), batches(3, seed=1)
    for batch in first:
        session.step(*batch)
    session.lr, session.seed = 0.01, 5
    session.save_checkpoint(tmp_path / "c", {"epoch": "3"})
    onward = [session.step(*batch) for batch in second]
    other = fqt_deploy.load(artifact)
    assert other.load_checkpoint(tmp_path / "c") == {"epoch": "3"}
    assert (other.step_count, other.lr, other.seed) == (3, 0.01, 5)
    assert [other.step(*batch) for batch in second] == onward
    ours, theirs = session.state_dict(), other.state_dict()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_holds_the_optimizer_state(session, tmp_path):
    session.step(*batches(1)[0])
    session.save_checkpoint(tmp_path / "c")
    kinds = {name.partition("/")[0] for name in load_file(tmp_path / "c")}
    assert kinds == {"param", "buffer", "adam_m", "adam_v", "step"}


def test_a_failed_write_leaves_the_old_checkpoint(session, tmp_path, monkeypatch):
    session.save_checkpoint(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    session.step(*batches(1)[0])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FqtError, match=r"FQT508.*No space left"):
        session.save_checkpoint(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    with pytest.raises(FqtError, match="FQT508"):
        session.save_checkpoint(tmp_path / "absent" / "c")


def refuses(session, path, code):
    before = session.state_dict()
    with pytest.raises(FqtError, match=code):
        session.load_checkpoint(path)
    after = session.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_what_is_no_checkpoint_of_this_model_is_refused(session, tmp_path):
    path = tmp_path / "c"
    refuses(session, path, "FQT502")
    path.write_bytes(b"short")
    refuses(session, path, "FQT502")
    save_file({"a": np.zeros(3)}, path)
    refuses(session, path, "FQT504")
    session.save_checkpoint(path)
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    refuses(session, path, "FQT502")
    other = dataclasses.replace(session.manifest, fingerprint="0" * 64)
    save_checkpoint(path, other, session._state, {"seed": "0", "lr": "[0.1]"})
    refuses(session, path, "FQT504")


@pytest.mark.parametrize(
    "metadata", [{}, {"seed": "x", "lr": "[0.1]"}, {"seed": "0", "lr": '"fast"'}, {"seed": "0", "lr": "3"}]
)
def test_damaged_metadata_is_refused(session, tmp_path, metadata):
    save_checkpoint(tmp_path / "c", session.manifest, session._state, metadata)
    refuses(session, tmp_path / "c", "FQT502")


def test_other_formats_are_refused(session, tmp_path):
    session.save_checkpoint(tmp_path / "c")
    header = {"fqt_fingerprint": session.manifest.fingerprint, "fqt_format": "99"}
    save_file(load_file(tmp_path / "c"), tmp_path / "c", header)
    with pytest.raises(FqtError, match=r"FQT503.*99"):
        load_checkpoint(tmp_path / "c", session.manifest)


def test_every_flipped_bit_is_seen(session, tmp_path):
    session.save_checkpoint(tmp_path / "c")
    content = bytearray((tmp_path / "c").read_bytes())
    generator = np.random.default_rng(0)
    for place in [*range(0, 400, 7), *generator.integers(0, len(content), 60)]:
        content[place] ^= 1 << int(generator.integers(8))
        (tmp_path / "flipped").write_bytes(content)
        with pytest.raises(FqtError, match=r"FQT50[234]"):
            load_checkpoint(tmp_path / "flipped", session.manifest)
        content[:] = (tmp_path / "c").read_bytes()


def test_checkpoints_without_a_digest_are_read(session, tmp_path):
    session.step(*batches(1)[0])
    header = {"fqt_fingerprint": session.manifest.fingerprint, "fqt_format": "1", "seed": "3", "lr": "[0.5]"}
    save_file({name: np.array(array) for name, array in session._state.items()}, tmp_path / "old", header)
    session.load_checkpoint(tmp_path / "old")
    assert (session.seed, session.lr, session.step_count) == (3, 0.5, 1)
    save_file({n: np.array(a) for n, a in session._state.items()}, tmp_path / "new", header | {"fqt_format": "2"})
    with pytest.raises(FqtError, match=r"FQT502.*digest"):
        session.load_checkpoint(tmp_path / "new")


def test_nan_is_neither_saved_nor_loaded(session, tmp_path):
    session.save_checkpoint(tmp_path / "c")
    before = (tmp_path / "c").read_bytes()
    good = session.state_dict()
    with pytest.raises(FqtError, match=r"FQT506.*head.bias holds 1 values that are NaN"):
        session.load_state_dict(good | {"head.bias": np.array([np.nan, *range(9)], np.float32)})
    with pytest.raises(FqtError, match=r"FQT506.*1e\+300"):
        session.load_state_dict(good | {"head.bias": np.full(10, 1e300)})
    assert all(np.array_equal(good[name], array) for name, array in session.state_dict().items())
    session._state["param/head.bias"][0] = np.nan
    for save in (session.save_checkpoint, session.save):
        with pytest.raises(FqtError, match="FQT506"):
            save(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == before


@pytest.mark.parametrize("metadata", [{"lr": "[-1]"}, {"lr": "[1e300]"}, {"lr": "[NaN]"}, {"seed": "9" * 30}])
def test_a_refused_checkpoint_changes_nothing(session, tmp_path, metadata):
    session.lr, session.seed = 0.25, 5
    save_checkpoint(tmp_path / "c", session.manifest, session._state, {"seed": "0", "lr": "[0.1]"} | metadata)
    refuses(session, tmp_path / "c", "FQT502")
    assert (session.lr, session.seed) == (0.25, 5)


@pytest.mark.parametrize("change", ["shorter", "touched"])
def test_a_file_that_changes_while_it_is_loaded_leaves_the_session_as_it_was(session, tmp_path, monkeypatch, change):
    session.save_checkpoint(tmp_path / "c")
    session.step(*batches(1)[0])
    session.lr, session.seed = 0.25, 5
    before = {name: np.array(array) for name, array in session._state.items()}
    reads, read = [], files.TensorFile.read

    def read_once_more(tensors, name):
        reads.append(name)
        if len(reads) == len(tensors.entries) + 3:  # all were looked at, and some are being read for good
            if change == "shorter":
                os.truncate(tensors.path, len(tensors.header) + 100)
            else:
                os.utime(tensors.path, (1, 1))
        return read(tensors, name)

    monkeypatch.setattr(files.TensorFile, "read", read_once_more)
    refuses(session, tmp_path / "c", "FQT502")
    assert len(reads) > len(before)
    assert (session.lr, session.seed) == (0.25, 5)
    assert all(np.array_equal(before[name], array) for name, array in session._state.items())


def test_damaged_notes_of_a_run_leave_a_record_as_it_was():
    record = EpochRecord(best=0.5, epochs=2, losses=(1.0, 1), place="here")
    for damaged in ('{"best": "x", "losses": [3, 1]}', '{"waited": Infinity}', '{"losses": [1]}', "[" * 100_000):
        with pytest.raises(FqtError, match="FQT502"):
            record.resume({"fqt_train": damaged, "place": "there"})
    assert (record.best, record.waited, record.epochs, record.losses, record.place) == (0.5, 0, 2, (1.0, 1), "here")


def test_a_checkpoint_is_in_memory_an_array_at_a_time(tmp_path):
    """Saving, and checking what is loaded, take the memory of a few arrays beside the state, not that of the file."""
    program = f"""
from types import SimpleNamespace
import numpy as np
from fqt_deploy.core.manifest import StateSpec
from fqt_deploy.runtime.checkpoint import open_checkpoint, save_checkpoint
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
state = {{f"param/{{i}}": np.full((1024, 1024), i, np.float32) for i in range(24)}} | {{"step": np.ones((), np.int64)}}
specs = tuple(StateSpec(name, array.shape, array.dtype.name, "param") for name, array in state.items())
manifest = SimpleNamespace(fingerprint="f", name="n", state=specs)
before = peak()
save_checkpoint({str(tmp_path / "c")!r}, manifest, state, {{}})
saved = peak()
with open_checkpoint({str(tmp_path / "c")!r}, manifest) as (tensors, _):
    assert all(np.array_equal(tensors.read(name), state[name]) for name in state)
print(saved - before, peak() - saved)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    saved, loaded = (int(kib) / 1024 for kib in done.stdout.split())
    assert saved < 12, "MB, of 96"
    assert loaded < 12
