"""The kernels of a C program's steps: noted between start and stop, shown by fqt-profile."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from fqt_deploy.cli_profile import main
from fqt_deploy.profiling.step_profile import read_profile

PROGRAM = r"""
#include <fqt_runtime.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  fqt_session *session;
  float plain = 0, timed = 0;
  int i, code;
  if (argc != 3 || fqt_load(argv[1], &session) != 0) return 1;
  char *x = calloc(1, fqt_x(session)->bytes), *y = calloc(1, fqt_y(session)->bytes);
  code = fqt_stop_timing(session, argv[2]);
  printf("%d %s\n", code, fqt_last_error());
  for (i = 0; i < 6; i++) {
    if (i == 2 && fqt_start_timing(session) != 0) return 2;
    if (i == 2) {
      code = fqt_start_timing(session);
      printf("%d %s\n", code, fqt_last_error());
    }
    if (i == 5 && fqt_stop_timing(session, argv[2]) != 0) return 3;
    if (fqt_step(session, x, fqt_x(session)->bytes, y, fqt_y(session)->bytes, i < 5 ? &timed : &plain) != 0) return 4;
    printf("loss %a\n", i < 5 ? timed : plain);
  }
  fqt_free(session);
  return 0;
}
"""


@pytest.fixture(scope="module")
def times(c_api, digits_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("timing")
    (folder / "p.c").write_text(PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(c_api / "include"), "-L", str(c_api / "lib")]
    link = ["-lfqt_runtime", f"-Wl,-rpath,{c_api / 'lib'}", "-o", str(folder / "p")]
    subprocess.run(["gcc", *flags, str(folder / "p.c"), *link], check=True)
    command = [folder / "p", digits_artifact, folder / "times.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return folder / "times.json", done.stdout.splitlines()


def test_losses_are_those_without_a_clock(times, digits_artifact):
    import numpy as np

    import fqt_deploy

    session = fqt_deploy.load(digits_artifact)
    x, y = session.manifest.inputs
    batch = np.zeros(x.shape, x.dtype), np.zeros(y.shape, y.dtype)
    assert [float.fromhex(line[5:]) for line in times[1] if line.startswith("loss")] == [
        session.step(*batch) for _ in range(6)
    ]


def test_wrong_order_is_refused(times):
    said = [line for line in times[1] if line.startswith("202")]
    assert said == ["202 FQT202: no kernels are being timed", "202 FQT202: kernels are being timed already"]


def test_they_are_shown(times, digits_artifact, tmp_path):
    assert len(json.loads(times[0].read_text())["steps"]) == 3
    arguments = [digits_artifact, "--times", times[0], "--save", tmp_path / "p.json"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    profile = read_profile(tmp_path / "p.json")
    assert len(profile.timed) == 3
    assert 0 < profile.kernels_s <= max(profile.steps)


@pytest.mark.parametrize("text", ["", "[]", '{"steps": []}', '{"steps": [{"begin": 0, "end": 1, "calls": []}]}'])
def test_other_files_are_refused(text, digits_artifact, tmp_path):
    (tmp_path / "t.json").write_text(text)
    result = CliRunner().invoke(main, [str(digits_artifact), "--times", str(tmp_path / "t.json")])
    assert result.exit_code == 1
    assert "error[FQT502]" in result.output
