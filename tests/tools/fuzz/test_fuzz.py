"""500 damaged files, in Python and in C with sanitizers: each is taken or refused with a code."""

import random
import shutil

import pytest

from fqt_deploy.targets.toolchain import native_toolchain
from tools.fuzz.c_reader import build_driver, fuzz_c
from tools.fuzz.good_files import good_files_of
from tools.fuzz.mutations import HOSTILE, mutate_bytes, mutate_json, mutate_tensors
from tools.fuzz.python_readers import fuzz

PYTHON, C = range(300), range(200)
CODES = {"bundle FQT502", "checkpoint FQT502", "checkpoint FQT506", "npz FQT510", "weights FQT102", "log FQT207"}


@pytest.fixture(scope="module")
def good(digits_artifact, tmp_path_factory):
    """The digits artifact without the libraries that it brings along: their digests would take most of the time."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(digits_artifact, folder / "step.fqt", ignore=shutil.ignore_patterns("lib", "licenses"))
    sums = (digits_artifact / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "step.fqt" / "SHA256SUMS").write_text("".join(line for line in sums if "/" not in line))
    return good_files_of(folder / "step.fqt", folder, None)


def test_python_takes_or_refuses_what_is_damaged(good, tmp_path):
    outcomes, findings = fuzz(good, tmp_path, ["bundle", "checkpoint", "npz", "weights", "log"], PYTHON)
    assert not findings, findings[0]
    assert outcomes.total() == len(PYTHON)
    assert outcomes.keys() >= CODES


@pytest.mark.thorough
def test_c_takes_or_refuses_what_is_damaged(good, tmp_path):
    native_toolchain().compiler()
    outcomes, findings = fuzz_c(build_driver(tmp_path), good, tmp_path, C)
    assert not findings, findings[0]
    assert outcomes.total() == len(C)
    assert outcomes.keys() >= {"c bundle FQT502", "c checkpoint FQT502", "c checkpoint FQT506"}


@pytest.mark.parametrize("mutate", [mutate_bytes, mutate_json, mutate_tensors])
def test_inputs_are_determined_by_their_number(mutate):
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":[1,2,{"c":"d"}]}  '
    content = header if mutate is mutate_json else len(header).to_bytes(8, "little") + header + bytes(8)
    made = [mutate(content, random.Random(number)) for number in range(50)]
    assert made == [mutate(content, random.Random(number)) for number in range(50)]
    assert len(set(made)) > 25


def test_inputs_do_not_depend_on_those_before_them():
    """Hostile lists and objects stay as they are when a later change is made inside of one."""
    content = b'{"a":[[1],[2]],"b":{"c":{}}}'
    hostile = repr(HOSTILE)
    made = {number: mutate_json(content, random.Random(number)) for number in range(4000)}
    assert repr(HOSTILE) == hostile
    for number in range(3999, 0, -97):
        assert mutate_json(content, random.Random(number)) == made[number]
