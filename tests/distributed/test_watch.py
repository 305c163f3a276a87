"""A process that ends is noticed by the next one; two watches in one process stand for two processes."""

import time

import pytest
import torch.distributed as dist

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.distributed import watch
from fqt_deploy.distributed.waiting import wait_for
from fqt_deploy.distributed.watch import Watch


@pytest.fixture
def both(monkeypatch):
    """The watches of two processes, in a hurry, and the store between them."""
    monkeypatch.setattr(watch, "BEAT_S", 0.05)
    monkeypatch.setattr(watch, "SILENCE_S", 1.0)
    monkeypatch.setattr(watch, "GRACE_S", 60.0)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    watches = [Watch(rank, 2, "0") for rank in (0, 1)]
    yield watches
    for each in watches:
        each.close()
    del store


def error_of(other):
    """What ``check`` raises in the end."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            other.check()
        except FqtError as error:
            return error
        time.sleep(0.02)
    raise AssertionError("it was never noticed")


def test_a_process_that_gives_no_sign_of_life_has_ended(both):
    first, second = both
    first.check()
    second._end.set()  # as if it were killed: it closes nothing
    error = error_of(first)
    assert error.code == "FQT603"
    assert "process 1 gives no sign of life" in error.message


def test_a_process_that_fails_says_why(both):
    first, second = both
    second.close("the disk is full")
    error = error_of(first)
    assert error.code == "FQT603"
    assert "process 1: the disk is full" in error.message


def test_a_process_that_has_done_its_part_has_not_failed(both):
    first, second = both
    second.close()
    time.sleep(1.5)
    first.check()


def test_without_a_store_the_error_says_how_to_start(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(FqtError, match="MASTER_ADDR is not set") as caught:
        Watch(0, 2, "0")
    assert caught.value.code == "FQT604"
    assert "torchrun" in caught.value.hint


class Work:
    """A collective that fails for some waits, and then ends or stays broken."""

    def __init__(self, failures, *, broken=False):
        self.failures, self.broken = failures, broken

    def wait(self, _patience):
        if self.failures or self.broken:
            self.failures -= 1
            raise RuntimeError("Connection closed by peer\nand a trace")

    def is_completed(self):
        return self.broken


def test_a_collective_is_waited_for_while_the_others_live():
    asked = []
    wait_for(Work(3), lambda: asked.append(1))
    assert len(asked) == 3
    with pytest.raises(FqtError, match="ended: Connection closed by peer") as caught:
        wait_for(Work(0, broken=True), lambda: None)
    assert caught.value.message.endswith("by peer"), "of what PyTorch says, the end alone"
    assert caught.value.code == "FQT603"
