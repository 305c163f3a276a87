"""The breakdown sums what it is given, and rooflines are what the slowest of the three ceilings says."""

from __future__ import annotations

import pytest

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.manifest import KernelInfo
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.profiling.kernel_classes import CLASSES, REST
from tools.ceilings import Ceilings
from tools.step_breakdown import break_down, table

CEILINGS = Ceilings(bit_macs=1000.0, fp32_macs=100.0, bytes=10.0)


def _kernel(op: str, flops: int = 0, bit_ops: int = 0, bytes_moved: int = 0) -> KernelInfo:
    return KernelInfo("symbol", op, "", "forward", flops, bit_ops, bytes_moved, None)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [((200, 0, 0), 1.0), ((0, 4000, 0), 2.0), ((0, 0, 30), 3.0), ((200, 4000, 30), 3.0)],
)
def test_roofline_is_the_slowest_ceiling(work: tuple[int, int, int], seconds: float) -> None:
    flops, bit_ops, bytes_moved = work
    assert CEILINGS.seconds(flops=flops, bit_ops=bit_ops, bytes_moved=bytes_moved) == seconds


def test_kernels_are_summed_by_class() -> None:
    kernels = [_kernel("binary_conv2d", bit_ops=2000, bytes_moved=5), _kernel("relu", bytes_moved=10), _kernel("add")]
    kernels.append(_kernel("binary_conv2d", bit_ops=2000, bytes_moved=15))
    products, rest = break_down(kernels, [2.0, 0.5, 0.5, 3.0], CEILINGS)
    assert (products.name, products.calls, products.seconds) == ("1-bit products", 2, 5.0)
    assert products.roofline_s == 1.0 + 1.5
    assert products.gmacs == pytest.approx(2000 / 5.0 / 1e9)
    assert (rest.name, rest.calls, rest.seconds, rest.roofline_s) == (REST, 2, 1.0, 1.0)


def test_a_kernel_without_a_time_is_an_error() -> None:
    with pytest.raises(ValueError, match="argument"):
        break_down([_kernel("relu")], [], CEILINGS)


def test_classes_name_ops_that_exist() -> None:
    assert {op for ops in CLASSES.values() for op in ops} <= set(FQT_OPS)


def test_table_ends_with_the_sum() -> None:
    classes = [{"name": n, "calls": 2, "seconds": 0.5, "roofline_s": 0.25, "gbytes_s": 1.0, "gmacs": 2.0} for n in "ab"]
    assert table(classes).splitlines()[-1].split() == ["sum", "4", "1000.00", "500.00"]
