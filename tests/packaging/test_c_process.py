"""The C interface in processes that fork, start threads, end early, and meet manifests that are not true."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.core.diagnostics import FqtError

PROGRAM = r"""
#include <fqt_runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *folder;
static fqt_session *session;
static float *x;
static int64_t *y;
static float last;

static int step_of(fqt_session *s) {
  return fqt_step(s, x, fqt_x(s)->bytes, y, fqt_y(s)->bytes, &last);
}
static void *own_session(void *unused) {
  fqt_session *mine;
  (void)unused;
  if (fqt_load(folder, &mine) == 0 && step_of(mine) == 0) printf("%a\n", last);
  fqt_free(mine);
  return NULL;
}
static void say_step(void) {
  int code = step_of(session);
  printf("%d %s\n", code, fqt_last_error());
}
static volatile int stop_when_refused, refused;
static void *forever(void *unused) {
  (void)unused;
  for (;;) {
    if (step_of(session) != 0 && stop_when_refused) { refused = 1; printf("%s\n", fqt_last_error()); return NULL; }
  }
}
static int tasks(void) {
  FILE *pipe = popen("ls /proc/$PPID/task | wc -l", "r");
  int count = 0;
  if (fscanf(pipe, "%d", &count) != 1) count = -1;
  pclose(pipe);
  return count;
}

int main(int argc, char **argv) {
  pthread_t thread;
  int i;
  (void)argc;
  setvbuf(stdout, NULL, _IONBF, 0);
  folder = argv[2];
  if (fqt_load(folder, &session) != 0) { printf("%s\n", fqt_last_error()); return 1; }
  x = calloc(1, fqt_x(session)->bytes);
  y = calloc(1, fqt_y(session)->bytes);
  if (strcmp(argv[1], "fork") == 0) {
    int status;
    step_of(session);
    usleep(100000); /* the workers sleep by now */
    pid_t child = fork();
    if (child == 0) { say_step(); exit(3); }
    waitpid(child, &status, 0);
    printf("%d\n", WEXITSTATUS(status));
    say_step();
  } else if (strcmp(argv[1], "forks") == 0) {
    for (i = 0; i < 20; ++i) {
      int status;
      step_of(session);
      if (fork() == 0) exit(3);
      wait(&status);
      printf("%d ", WEXITSTATUS(status));
    }
  } else if (strcmp(argv[1], "threads") == 0) {
    for (i = 0; i < 10; ++i) {
      pthread_create(&thread, NULL, own_session, NULL);
      pthread_join(thread, NULL);
      if (i == 0 || i == 9) printf("%d tasks\n", tasks());
    }
  } else if (strcmp(argv[1], "two") == 0) {
    stop_when_refused = 1;
    pthread_create(&thread, NULL, forever, NULL);
    while (!refused) {
      if (step_of(session) != 0) { printf("%s\n", fqt_last_error()); break; }
    }
    return 0; /* while the thread is in a step, or has been refused */
  } else if (strcmp(argv[1], "exit") == 0) {
    pthread_create(&thread, NULL, forever, NULL);
    usleep(100000);
    return 0;
  } else if (strcmp(argv[1], "predict") == 0) {
    void *logits = malloc(fqt_logits(session)->bytes);
    printf("%d\n", fqt_predict(session, x, fqt_x(session)->bytes, logits, fqt_logits(session)->bytes));
    say_step();
  }
  fqt_free(session);
  return 0;
}
"""


@pytest.fixture(scope="module")
def program(c_api, tmp_path_factory):
    folder = tmp_path_factory.mktemp("process")
    (folder / "process.c").write_text(PROGRAM)
    library = ["-L", c_api / "lib", "-lfqt_runtime", f"-Wl,-rpath,{c_api / 'lib'}", "-pthread"]
    flags = ["-std=gnu99", "-Wall", "-Wextra", "-Werror", "-I", c_api / "include"]
    subprocess.run(["gcc", *flags, folder / "process.c", *library, "-o", folder / "process"], check=True)
    return folder / "process"


def run(program, what, artifact, threads=2):
    environment = {**os.environ, "FQT_NUM_THREADS": str(threads)}
    environment.pop("TVM_NUM_THREADS", None)
    return subprocess.run(
        [program, what, artifact], capture_output=True, text=True, timeout=60, env=environment, check=False
    )


def test_a_step_after_a_fork_is_refused(program, digits_artifact):
    done = run(program, "fork", digits_artifact)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first.startswith("512 FQT512: ")
    assert "spawn" in first
    assert (second, third) == ("3", "0 ")


@pytest.mark.thorough
def test_children_end_by_themselves_on_a_busy_machine(program, digits_artifact):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        done = run(program, "forks", digits_artifact)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert (done.returncode, done.stdout.split()) == (0, ["3"] * 20), done.stderr


def test_short_lived_threads_leave_no_workers(program, digits_artifact):
    done = run(program, "threads", digits_artifact)
    lines = done.stdout.splitlines()
    assert len({line for line in lines if "tasks" in line}) == 1, lines
    assert len({line for line in lines if "tasks" not in line}) == 1, lines
    assert lines[0].startswith("0x")


@pytest.mark.parametrize("what", ["two", "exit"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_refused_or_finish(program, digits_artifact, what, threads):
    done = run(program, what, digits_artifact, threads)
    assert done.returncode == 0, done
    assert what == "exit" or done.stdout.startswith("FQT512: another thread"), done.stdout


def test_a_process_with_more_threads_than_cores_ends(program, digits_artifact):
    assert run(program, "predict", digits_artifact, 4 * os.cpu_count()).returncode == 0
    assert "FQT202" in run(program, "predict", digits_artifact, 1025).stdout


def tampered(artifact, folder, change):
    """A copy whose manifest ``change`` has been at, with the digests to match."""
    shutil.copytree(artifact, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    sums = [line for line in (folder / "SHA256SUMS").read_text().splitlines() if not line.endswith("  manifest.json")]
    (folder / "SHA256SUMS").write_text("\n".join([f"{hashlib.sha256(text).hexdigest()}  manifest.json", *sums, ""]))
    return folder


def larger_logits(manifest):
    manifest["logits"]["shape"] = [8, 810]
    manifest["classes"] = 810


def other_order(manifest):
    manifest["state"][0], manifest["state"][1] = manifest["state"][1], manifest["state"][0]


@pytest.mark.parametrize("change", [larger_logits, other_order])
def test_a_manifest_that_is_not_true_is_refused(program, digits_artifact, tmp_path, change):
    folder = tampered(digits_artifact, tmp_path / "untrue.fqt", change)
    predicted, stepped = run(program, "predict", folder).stdout.splitlines()
    assert predicted == ("502" if change is larger_logits else "0")  # by name, so the order is all the same
    assert stepped.startswith("502 FQT502: step.so "), stepped
    session = fqt_deploy.load(folder)
    x = np.zeros(session.manifest.inputs[0].shape, np.float32)
    with pytest.raises(FqtError, match="FQT502"):
        session.step(x, np.zeros(8, np.int64))
    if change is larger_logits:
        with pytest.raises(FqtError, match="FQT502"):
            session.predict(x)


CONTRADICTIONS = {
    "classes": lambda m: m.update(classes=1000),
    "batch": lambda m: m["inputs"][1].update(shape=[4]),
    "no batch": lambda m: m["inputs"][0].update(shape=[0, 1, 8, 8]),
    "rows": lambda m: m["logits"].update(shape=[9, 10]),
    "huge": lambda m: m["logits"].update(shape=[8, 2**62, 10], dtype="float64"),
    "hidden": lambda m: m["inputs"][0].update(shape=[0, 2**62, 2**62, 8]),
    "negative": lambda m: m["state"][0].update(shape=[-1]),
    "type": lambda m: m["state"][0].update(dtype="float8"),
    "twice": lambda m: m["state"].append(m["state"][0]),
    "unknown": lambda m: m["predict_state"].append("param/none"),
    "step": lambda m: m.update(state=[s for s in m["state"] if s["name"] != "step"]),
    "rate": lambda m: m["optimizer"]["groups"][0].update(lr=-1),
    "large rate": lambda m: m["optimizer"]["groups"][0].update(lr=1e300),
    "rates": lambda m: m["optimizer"].update(groups=[]),
    "range": lambda m: m["inputs"][1]["values"].update(low=3, high=3),
    "role": lambda m: m["inputs"][0].update(role="other"),
    "names": lambda m: m["inputs"][0].update(name="y"),
    "bucket": lambda m: m.update(
        buckets=[{"shapes": [[8, 1, 8, 8], [7]], "logits": [8, 10], "state": [], "predict_state": []}]
    ),
    "bucket of nothing": lambda m: m.update(
        buckets=[{"shapes": [s["shape"] for s in m["inputs"]], "logits": [8, 10], "state": ["w"], "predict_state": []}]
    ),
    "axis": lambda m: m.update(class_axis=7),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_manifest_that_contradicts_itself_is_refused(program, digits_artifact, tmp_path, name):
    folder = tampered(digits_artifact, tmp_path / "untrue.fqt", CONTRADICTIONS[name])
    done = run(program, "predict", folder)
    assert (done.returncode, done.stdout[:6]) == (1, "FQT502"), done.stdout
    with pytest.raises(FqtError, match="FQT502"):
        fqt_deploy.load(folder)


def test_labels_are_those_of_the_manifest(program, digits_artifact, tmp_path):
    def change(manifest):
        manifest["inputs"][1]["values"] = {"low": 1, "high": 10, "ignore_index": -100}

    folder = tampered(digits_artifact, tmp_path / "labels.fqt", change)
    assert "507 FQT507: y[0] is 0; labels go from 1 to 9" in run(program, "predict", folder).stdout
    session = fqt_deploy.load(folder)
    x = np.zeros(session.manifest.inputs[0].shape, np.float32)
    with pytest.raises(FqtError, match=r"FQT507: y\[0\] is 0; labels go from 1 to 9, or are -100"):
        session.step(x, np.zeros(8, np.int64))
    session.step(x, np.arange(1, 9))
