"""Work in a fork: what it returns, prints and reads arrives here; where it fails or hangs there is nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fqt_deploy.capture import forked as subject
from fqt_deploy.capture.forked import forked
from fqt_deploy.core.watched_files import watched_files

pytestmark = pytest.mark.skipif(not subject._can_fork(), reason="no fork here, or one processor")


def test_what_work_returns_prints_and_reads_arrives(tmp_path, capsys):
    (tmp_path / "read").write_text("x")

    def work():
        print("said")
        print("complained", file=sys.stderr)
        (tmp_path / "read").read_text()
        return str(os.getpid()).encode() + bytes(1 << 20)  # more than a pipe holds

    with watched_files() as read, forked(work) as begun:
        returned = begun.result()
    assert len(returned) > 1 << 20
    assert returned.rstrip(b"\0") == str(begun.process).encode() != str(os.getpid()).encode()
    assert capsys.readouterr() == ("said\n", "complained\n")
    assert str(tmp_path / "read") in read


def test_modules_that_work_imports_count_as_read(tmp_path, monkeypatch):
    (tmp_path / "only_there.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work():
        import only_there

        return bytes(only_there.x)

    with watched_files() as read, forked(work) as begun:
        assert begun.result() == b"\0"
    assert str(tmp_path / "only_there.py") in read
    assert "only_there" not in sys.modules


@pytest.mark.parametrize("end", [lambda: 1 / 0, lambda: sys.exit(0), lambda: os._exit(0), lambda: os.abort()])
def test_work_that_fails_returns_nothing(end, capfd):
    def work():
        print("said")
        return end()

    with forked(work) as begun:
        assert begun.result() is None
    assert capfd.readouterr() == ("", "")


def test_work_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(subject, "_PATIENCE", 0.1)
    with forked(lambda: time.sleep(1000) or b"") as begun:
        assert begun.result() is None
    with pytest.raises(ProcessLookupError):
        os.kill(begun.process, 0)


def test_work_ends_with_the_block():
    with pytest.raises(ZeroDivisionError), forked(lambda: time.sleep(1000) or b"") as begun:
        raise ZeroDivisionError
    with pytest.raises(ProcessLookupError):
        os.kill(begun.process, 0)


@pytest.mark.parametrize("here", [("platform", "darwin"), ("processors", {0}), ("cuda", True)])
def test_elsewhere_there_is_no_fork(here, monkeypatch):
    what, value = here
    if what == "platform":
        monkeypatch.setattr(subject.sys, "platform", value)
    elif what == "processors":
        monkeypatch.setattr(subject.os, "sched_getaffinity", lambda _: value)
    else:
        monkeypatch.setattr(subject.torch.cuda, "is_initialized", lambda: value)
    with forked(lambda: b"") as begun:
        assert begun is None


def test_where_no_process_can_be_made_there_is_no_fork(monkeypatch):
    def refused():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "fork", refused)
    with forked(bytes) as begun:
        assert begun is None
    assert os.listdir("/proc/self/fd") == before


def test_what_is_printed_is_lost_in_a_program_without_streams(monkeypatch):
    def work():
        print("said")
        print("complained", file=sys.stderr)
        return b"done"

    with forked(work) as begun:
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stderr", None)
        returned = begun.result()
    monkeypatch.undo()
    assert returned == b"done"


KILLED = """
import os, signal, sys, time
from fqt_deploy.capture.forked import forked
with forked(lambda: time.sleep(100)) as begun:
    print(begun.process, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_work_ends_that_was_begun_by_a_process_of_the_past(tmp_path, monkeypatch):
    """One that ends between the fork and the call that asks for a signal at its end sends none."""
    begun = tmp_path / "begun"
    monkeypatch.setattr(subject.os, "getppid", lambda: 1)
    with forked(lambda: begun.touch() or b"done") as process:
        assert process.result() is None
    assert not begun.exists()


def test_work_ends_with_the_process_that_began_it():
    started = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, timeout=60, check=False)
    assert started.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(started.stdout)}/stat")
    for _ in range(100):
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it still runs")
