"""The peak of tile registers: its kernel is written on every machine, and runs where there are such registers."""

import pytest
import tvm

from fqt_deploy.targets.registry import make_target
from tools.tile_ceiling import tile_kernel, tile_product


def test_the_kernel_multiplies_in_every_thread():
    module = tvm.IRModule({"main": tile_kernel(threads=3)})
    assert "tdpb" in module.script()
    assert "T.parallel(3)" in module.script()


@pytest.mark.skipif(not make_target("cpu").features.has_amx, reason="this machine has no tile registers")
def test_a_ceiling_counts_what_every_thread_multiplies():
    run, macs = tile_product(threads=2)
    run()
    assert macs == 2 * tile_product(threads=1)[1]
