"""Tensors in files: read as they were written, into aligned memory, and not twice at a time."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.arrays import is_ready
from fqt_deploy.runtime.files import digest_of_file, read_aligned_tensors, tensors_to_bytes

TYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
ARRAYS = st.sampled_from(TYPES).flatmap(lambda kind: arrays_of.arrays(kind, SHAPES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tensors")


@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"), ARRAYS, max_size=5))
def test_what_was_written_is_read_into_aligned_memory(folder, arrays):
    path = folder / "state.safetensors"
    path.write_bytes(tensors_to_bytes(arrays, {"a": "b"}))
    found = read_aligned_tensors(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
        assert found[name].shape == array.shape
        assert is_ready(found[name]) or not array.size  # NumPy's empty arrays lie anywhere


@pytest.mark.parametrize("cut", [0, 4, 8, 40, -1])
def test_a_file_that_ends_too_early_is_damaged(tmp_path, cut):
    path = tmp_path / "state.safetensors"
    path.write_bytes(tensors_to_bytes({"x": np.ones((3, 5), np.float32)})[:cut])
    with pytest.raises(FqtError, match=r"damaged|cannot read") as caught:
        read_aligned_tensors(path)
    assert caught.value.code == "FQT502"


@pytest.mark.parametrize("read", [read_aligned_tensors, digest_of_file])
def test_what_is_no_file_is_refused(tmp_path, read):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(FqtError, match="cannot read") as caught:
            read(path)
        assert caught.value.code == "FQT502"


def test_a_file_is_in_memory_once(tmp_path):
    """Reading takes as much memory as the arrays have, and looking at a digest none."""
    path = tmp_path / "state.safetensors"
    path.write_bytes(tensors_to_bytes({"x": np.ones((64, 256, 1024), np.float32)}))
    program = f"""
from pathlib import Path
from fqt_deploy.runtime.files import digest_of_file, read_aligned_tensors
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
digest_of_file(Path({str(path)!r}))
digested = peak()
arrays = read_aligned_tensors(Path({str(path)!r}))
print(digested - before, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    digested, read = (int(kib) / 1024 for kib in done.stdout.split())
    length = path.stat().st_size / 2**20
    assert digested < 0.1 * length
    assert 0.9 * length < read < 1.2 * length
