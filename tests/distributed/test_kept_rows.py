"""Gradients of which a selection keeps few channels: only these are sent, and the sums are those of all rows."""

from pathlib import Path

import numpy as np
import pytest

import fqt_deploy
from fqt_deploy.distributed.row_sum import is_shorter
from tests.distributed.conftest import PLAIN, launch, outcome
from tests.distributed.worker import STEPS, train

WORKER = Path(__file__).with_name("rows_worker.py")
PRUNED = {**PLAIN, "recipe": "scq+agp", "agp": "sampled", "grad_bits": 4, "exclude": ("0", "5"), "distributed": "fp32"}
KEPT, ROWS, ELEMENTS = 8, 33, 288  # of the weight of layer 3
SMALL = 4 * (8 * 9 + 8 + 33 + 33 * 10 + 10 + 2 * (8 + 33))  # bytes of all other gradients


def trained(artifact, folder, ranks):
    """What the processes found: by what they sent, and number of the process."""
    for code, output in map(outcome, launch(WORKER, artifact, folder / "r", ranks=ranks)):
        assert code == 0, output
    return {
        (job, rank): dict(np.load(folder / f"r.{job}.{rank}.npz")) for job in ("kept", "whole") for rank in range(ranks)
    }


def states(found):
    return {name: array for name, array in found.items() if name not in ("seed", "sent")}


@pytest.fixture(scope="module")
def two(compiled, tmp_path_factory):
    return trained(compiled(**PRUNED), tmp_path_factory.mktemp("two"), 2)


def test_two_processes_get_the_bits_of_a_sum_of_all_rows(two):
    whole = states(two["whole", 0])
    assert {"grad_sum|3.weight", "sgd_momentum|3.weight", "ema|3.weight"} <= whole.keys()
    for name, array in states(two["kept", 0]).items():
        assert array.tobytes() == whole[name].tobytes(), name


def test_only_kept_rows_and_their_numbers_are_sent(two):
    for rank in (0, 1):
        assert two["whole", rank]["sent"] == STEPS * (SMALL + 4 * ROWS * ELEMENTS)
        assert two["kept", rank]["sent"] == STEPS * (SMALL + 4 * KEPT * (ELEMENTS + 1))


@pytest.mark.thorough
def test_three_processes_have_the_same_bits(compiled, tmp_path):
    found = trained(compiled(**PRUNED), tmp_path, 3)
    for job in ("kept", "whole"):
        for name, array in states(found[job, 0]).items():
            for rank in (1, 2):
                assert array.tobytes() == found[job, rank][name].tobytes(), (job, rank, name)
    np.testing.assert_allclose(found["kept", 0]["losses"][0], found["whole", 0]["losses"][0], rtol=1e-6)
    first, second = (found[job, 0]["sgd_momentum|3.weight"] for job in ("kept", "whole"))
    assert np.abs(first - second).max() < 0.02 * np.abs(second).max()


@pytest.fixture(scope="module")
def coded(compiled, tmp_path_factory):
    return trained(compiled(**PRUNED | {"distributed": "4-bit"}), tmp_path_factory.mktemp("coded"), 2)


def test_codes_of_kept_rows_are_an_eighth_of_the_rows(coded):
    row = 4 + ELEMENTS // 2  # a scale, and half a byte an element
    assert coded["kept", 0]["sent"] == STEPS * (SMALL + KEPT * (4 + row))
    assert coded["whole", 0]["sent"] == STEPS * (SMALL + 2 * -(-ROWS // 2) * row)


def test_codes_of_kept_rows_are_the_same_in_both_processes_and_near_the_rows(coded, two):
    for name, array in states(coded["kept", 0]).items():
        assert array.tobytes() == coded["kept", 1][name].tobytes(), name
    exact, rounded = two["kept", 0], coded["kept", 0]
    assert exact["losses"][0] == rounded["losses"][0]
    assert not np.array_equal(exact["ema|3.weight"], rounded["ema|3.weight"])
    np.testing.assert_allclose(rounded["ema|3.weight"], exact["ema|3.weight"], atol=0.02)


def test_processes_of_one_step_have_kept_other_rows(two):
    """Each draws its own selection: the sum has more rows than one process keeps."""
    rows = np.abs(two["kept", 0]["grad_sum|3.weight"]).max(axis=1) > 0
    assert KEPT < rows.sum() <= 4 * KEPT


def test_in_one_process_nothing_is_exchanged(compiled, tmp_path):
    session = fqt_deploy.load(compiled(**PRUNED))
    train(session, None, str(tmp_path / "alone"))
    found = dict(np.load(tmp_path / "alone.0.npz"))
    assert found["sent"] == 0
    assert np.isfinite(found["losses"]).all()


@pytest.mark.parametrize("wire", ["fp32", "4-bit"])
def test_a_group_of_one_process_trains_as_one_that_is_alone(compiled, tmp_path, wire):
    artifact = compiled(**PRUNED | {"distributed": wire})
    found = trained(artifact, tmp_path, 1)
    train(fqt_deploy.load(artifact), None, str(tmp_path / "alone"))
    alone = dict(np.load(tmp_path / "alone.0.npz"))
    for job in ("kept", "whole"):
        assert found[job, 0]["sent"] == 0
        np.testing.assert_allclose(found[job, 0]["losses"], alone["losses"], rtol=0 if wire == "fp32" else 1e-3)


@pytest.mark.parametrize(
    ("rows", "kept", "processes", "shorter"),
    [
        (512, 128, 2, True),
        (512, 128, 7, True),
        (512, 128, 8, False),
        (512, 512, 2, False),
        (1, 1, 3, False),
        (512, 128, 1, False),
    ],
)
def test_rows_travel_where_a_ring_sends_more(rows, kept, processes, shorter):
    assert is_shorter(rows, kept, processes) is shorter
    ring, to_all = 2 * (processes - 1) / processes * rows, (processes - 1) * kept
    assert shorter == (to_all < ring)
