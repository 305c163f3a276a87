"""Arrays that a compiled step takes: zero-copy where they lie right, else a copy, an error where they do not fit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import IndexRange, InputSpec, TensorSpec
from fqt_deploy.runtime.arrays import ALIGNMENT, aligned_copy, check_input, empty_aligned, is_ready

SPEC = TensorSpec("x", (4, 1, 8, 8), "float32")


@given(st.lists(st.integers(0, 5), max_size=4), st.sampled_from(["float32", "int64", "int32", "uint8"]))
@settings(deadline=None)
def test_empty_arrays_are_aligned(shape, dtype):
    array = empty_aligned(shape, dtype)
    assert (array.shape, array.dtype) == (tuple(shape), np.dtype(dtype))
    assert array.size == 0 or is_ready(array)


def test_aligned_memory_is_passed_without_a_copy():
    array = empty_aligned(SPEC.shape, SPEC.dtype)
    array[...] = 1
    assert check_input(SPEC, array) is array
    tensor = torch.from_numpy(array)
    assert check_input(SPEC, tensor).ctypes.data == tensor.data_ptr() == array.ctypes.data
    array.flags.writeable = False
    taken = check_input(SPEC, array)
    assert taken.ctypes.data == array.ctypes.data
    address = array.ctypes.data
    del array, tensor
    assert (taken == 1).all(), "it keeps the memory"
    assert taken.ctypes.data == address


def values():
    return np.arange(256, dtype=np.float32).reshape(SPEC.shape)


def shifted(array):
    memory = empty_aligned((257,), "float32")
    memory[1:] = array.ravel()
    return memory[1:].reshape(array.shape)


def read_only(array):
    array = aligned_copy(array)
    array.flags.writeable = False
    return array


AWKWARD = {
    "misaligned": shifted,
    "misaligned tensor": lambda a: torch.from_numpy(shifted(a)),
    "transposed": lambda a: np.ascontiguousarray(a.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "channels last": lambda a: torch.from_numpy(a).contiguous(memory_format=torch.channels_last),
    "expanded": lambda a: np.broadcast_to(a[:1], a.shape),
    "big-endian": lambda a: aligned_copy(a).astype(">f4"),
    "read-only": read_only,
    "needs a gradient": lambda a: torch.from_numpy(a.copy()).requires_grad_(),
    "masked": np.ma.array,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_what_lies_awkwardly_is_copied(name):
    given_values = AWKWARD[name](values())
    taken = check_input(SPEC, given_values)
    assert is_ready(taken)
    assert taken.ctypes.data % ALIGNMENT == 0
    expected = given_values.detach().numpy() if isinstance(given_values, torch.Tensor) else np.asarray(given_values)
    np.testing.assert_array_equal(taken, expected)


@pytest.mark.parametrize("name", AWKWARD)
def test_a_step_takes_awkward_arrays(name, session):
    x, y = AWKWARD[name](values() / 256), np.arange(4)
    plain = x.detach().numpy().copy() if isinstance(x, torch.Tensor) else np.array(x, dtype=np.float32, order="C")
    session.lr = 0.0
    expected = session.predict(plain)
    np.testing.assert_array_equal(session.predict(x), expected)
    session.step(x, y)
    np.testing.assert_allclose(session.last_logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "code", "said"),
    [
        (values().astype(np.float64), "FQT505", "astype"),
        (values()[:3], "FQT505", "batches of 4"),
        (values().reshape(4, 64), "FQT505", "expected float32[4, 1, 8, 8]"),
        (values().tolist(), "FQT505", "of type list"),
        (None, "FQT505", "NoneType"),
        (np.array([None]), "FQT505", "object"),
        (torch.from_numpy(values()).bfloat16(), "FQT505", "cannot be read"),
        (torch.from_numpy(values()).to_sparse(), "FQT505", "cannot be read"),
        (torch.from_numpy(values()).to("meta"), "FQT505", "cannot be read"),
        (np.where(values() == 70, np.nan, values()), "FQT506", "x[1, 0, 0, 6] is nan; 1 such values"),
        (np.where(values() == 70, np.inf, values()), "FQT506", "is inf"),
    ],
)
def test_what_does_not_fit_is_refused(value, code, said):
    with pytest.raises(FqtError) as caught:
        check_input(SPEC, value)
    assert caught.value.code == code
    assert said in caught.value.render()


@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(FqtError, match=rf"FQT507: y\[2\] is {label}; labels go from 0 to 9"):
        check_input(InputSpec("y", (4,), "int64", "target", IndexRange(0, 10)), np.array([0, 9, label, label]))


def test_columns_have_ranges_of_their_own():
    spec = InputSpec(
        "c", (2, 3), "int64", "input", IndexRange(0, 30), (IndexRange(0, 2), IndexRange(5, 30), IndexRange(0, 4, -100))
    )
    legal = np.array([[1, 29, 3], [0, 5, -100]])
    assert (check_input(spec, legal) == legal).all()
    for place, value, said in [
        ((1, 0), 2, "0 to 1"),
        ((0, 1), 4, "5 to 29"),
        ((1, 2), 29, "0 to 3"),
        ((0, 2), -1, "0 to 3"),
    ]:
        wrong = legal.copy()
        wrong[place] = value
        with pytest.raises(FqtError, match=rf"FQT507: c\[{place[0]}, {place[1]}\] is {value}; indices go from {said}"):
            check_input(spec, wrong)


def test_large_values_are_not_taken_for_infinity():
    large = np.full(SPEC.shape, 3e38, dtype=np.float32)
    assert (check_input(SPEC, large) == large).all()


def test_masked_values_are_refused():
    masked = np.ma.masked_greater(values(), 250)
    with pytest.raises(FqtError, match=r"FQT505: x is a masked array, and 5 values are masked"):
        check_input(SPEC, masked)


@pytest.mark.parametrize("extent", [1, 4])
def test_negative_strides_are_read_rightly(extent):
    spec = TensorSpec("x", (extent, 3), "float32")
    array = aligned_copy(np.arange(3.0 * extent, dtype=np.float32).reshape(extent, 3))[::-1]
    taken = check_input(spec, array)
    np.testing.assert_array_equal(taken, array)
    assert taken.strides == (12, 4)


def test_negated_tensors_are_read_rightly():
    tensor = torch._neg_view(torch.from_numpy(values()))
    np.testing.assert_array_equal(check_input(SPEC, tensor), -values())
    conjugate = torch.complex(torch.zeros(SPEC.shape), torch.from_numpy(values())).conj().imag
    np.testing.assert_array_equal(check_input(SPEC, conjugate), -values())


def test_an_ignored_label_is_legal():
    spec = InputSpec("y", (4,), "int64", "target", IndexRange(1, 5, -100))
    assert (check_input(spec, np.array([1, 4, -100, 2])) == [1, 4, -100, 2]).all()
    with pytest.raises(FqtError, match=r"FQT507: y\[3\] is -1; labels go from 1 to 4, or are -100"):
        check_input(spec, np.array([1, 4, -100, -1]))
