"""An exchange behind backward: gradients leave in order when the first of them is awaited, each once."""

from fqt_deploy.distributed.late_exchange import LateExchange


class Recorded:
    """An exchange that notes what it is called for."""

    def __init__(self):
        self.calls = []

    def begin(self, seed, step):
        self.calls.append(("begin", seed, step))

    def share(self, number):
        self.calls.append(("share", number))

    def start(self, index, gradient):
        self.calls.append(("start", index, gradient))

    def finish(self, index):
        self.calls.append(("finish", index))


def test_gradients_leave_when_the_first_is_awaited():
    inner = Recorded()
    late = LateExchange(inner)
    late.begin(3, 0)
    late.share("n")
    late.start(0, "a")
    late.start(1, "b")
    assert inner.calls == [("begin", 3, 0), ("share", "n")]
    late.finish(1)
    late.start(2, "c")
    late.finish(0)
    late.finish(2)
    assert inner.calls[2:] == [
        ("start", 0, "a"), ("start", 1, "b"), ("finish", 1), ("start", 2, "c"), ("finish", 0), ("finish", 2),
    ]  # fmt: skip


def test_what_a_failed_step_has_left_is_forgotten():
    inner = Recorded()
    late = LateExchange(inner)
    late.begin(3, 0)
    late.start(0, "a")
    late.begin(3, 1)
    late.finish(0)
    assert inner.calls == [("begin", 3, 0), ("begin", 3, 1), ("finish", 0)]
