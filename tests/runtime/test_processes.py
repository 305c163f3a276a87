"""Forks, threads and the end of the process: a coded error or a clean end, never a hang or a crash."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.runtime.artifact import read_artifact, read_sums, write_artifact

START = """
import os, sys, threading, time
import numpy as np, fqt_deploy
session = fqt_deploy.load(sys.argv[1])
x, y = np.ones((4, 1, 8, 8), np.float32), np.arange(4)
def said(call):
    try:
        call()
    except fqt_deploy.FqtError as error:
        print(error.code, error.hint, flush=True)
step = lambda: session.step(x, y)
"""


def run(artifact, program, threads=2, timeout=60):
    environment = {**os.environ, "FQT_NUM_THREADS": str(threads)}
    environment.pop("TVM_NUM_THREADS", None)
    command = [sys.executable, "-c", START + program, str(artifact)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)


def test_a_step_after_a_fork_is_refused(artifact):
    done = run(
        artifact,
        """
step()
time.sleep(0.1)  # the workers sleep by now
child = os.fork()
if child == 0:
    said(step)
    said(lambda: session.predict(x))
    said(lambda: fqt_deploy.load(sys.argv[1]).step(x, y))
    print(len(session.state_dict()), flush=True)  # what needs no workers works
    sys.exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
step()
""",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["FQT512"] * 3 + ["6", "3"]
    assert all("spawn" in line for line in lines[:3])


@pytest.mark.thorough
def test_children_end_by_themselves_on_a_busy_machine(artifact):
    """Forks while others want every core: no child waits for a worker that was not forked with it."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        done = run(
            artifact,
            """
losses = []
for _ in range(20):
    losses.append(step())
    child = os.fork()
    if child == 0:
        sys.exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
other = fqt_deploy.load(sys.argv[1])
print(losses == [other.step(x, y) for _ in range(20)])
""",
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_an_interruption_waits_for_the_step(artifact):
    """A signal's handler raises in the middle of a call: the call is done first, and the session goes on."""
    done = run(
        artifact,
        """
import signal
from fqt_deploy.runtime import calls
try:
    calls.call(lambda: (signal.raise_signal(signal.SIGINT), time.sleep(0.3), print("done")))
except KeyboardInterrupt:
    print("interrupted")
step()
print(session.step_count)
""",
    )
    assert (done.returncode, done.stdout.split()) == (0, ["done", "interrupted", "1"]), done.stderr


def test_a_fork_before_the_first_step_is_no_mistake(artifact):
    done = run(
        artifact,
        """
child = os.fork()
step()
if child:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


def test_two_threads_in_one_session_are_refused(artifact):
    done = run(
        artifact,
        """
inside, go = threading.Event(), threading.Event()
class Slow:
    def __dlpack__(self, **_): inside.set(); go.wait(); return x.__dlpack__()
    def __dlpack_device__(self): return x.__dlpack_device__()
thread = threading.Thread(target=lambda: session.step(Slow(), y))
thread.start()
inside.wait()
for call in (step, session.state_dict, lambda: session.save_checkpoint("never"), lambda: setattr(session, "lr", 1)):
    said(call)
go.set()
thread.join()
step()
print(session.step_count)
""",
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["FQT512"] * 4 + ["2"]


def test_short_lived_threads_leave_no_workers_and_compute_the_same(artifact):
    done = run(
        artifact,
        """
losses = []
def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start(); thread.join()
for _ in range(3):
    in_thread(lambda: losses.append(step()))
before = len(os.listdir("/proc/self/task"))
for _ in range(10):
    in_thread(lambda: losses.append(step()))
deadline = time.time() + 20
while len(os.listdir("/proc/self/task")) > before and time.time() < deadline:
    time.sleep(0.02)  # a thread that has been joined may be listed a moment longer, on a busy machine a long one
print(len(os.listdir("/proc/self/task")) <= before)
other = fqt_deploy.load(sys.argv[1])
print(losses == [other.step(x, y) for _ in range(13)])
""",
    )
    assert done.stdout.split() == ["True", "True"], done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_that_outlives_the_program_is_told(artifact, threads):
    done = run(
        artifact,
        """
def forever():
    while True:
        step()
threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
""",
        threads,
    )
    assert done.returncode == 0, done.stderr
    assert "SIGSEGV" not in done.stderr
    assert "terminate called" not in done.stderr


def test_a_process_with_more_threads_than_cores_ends_at_once(artifact):
    done = run(artifact, "step(); print(time.time(), flush=True)", 4 * os.cpu_count())
    took = time.time() - float(done.stdout)
    assert done.returncode == 0
    assert took < 2, took


@pytest.mark.parametrize("given", ["0", "-1", "1025", "9" * 5000, "1.5", "", "two", "٣"])
def test_impossible_numbers_of_threads_are_refused(artifact, given):
    done = run(artifact, "", given)
    assert "FQT202" in done.stderr.splitlines()[-1]


def test_a_session_keeps_its_build_when_it_is_compiled_again(artifact, session, tmp_path):
    """The same path, another library: the old session goes on, a new one gets the new code, nothing is mixed."""
    folder = tmp_path / "step"
    shutil.copytree(artifact, folder)
    old = fqt_deploy.load(folder)
    digest = read_sums(folder)["step.so"]
    manifest, state, library = read_artifact(folder)
    other = library.read_bytes() + b"\0"  # another build, as far as anyone can tell
    write_artifact(folder, manifest, state, other, {"lib/libtvm_runtime.so": b"another"})
    x, y = np.ones((4, 1, 8, 8), np.float32), np.arange(4)
    assert old.step(x, y) == fqt_deploy.load(folder).step(x, y) == session.step(x, y)
    with open("/proc/self/maps") as maps:
        mapped = {line.split(maxsplit=5)[4] for line in maps if "step.so" in line and str(tmp_path) in line}
    assert len(mapped) == 2, "the new library was taken for the old one"
    old.save(tmp_path / "saved")
    assert read_sums(tmp_path / "saved")["step.so"] == digest
    assert fqt_deploy.load(tmp_path / "saved").step_count == 1
