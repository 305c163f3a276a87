"""The benchmark of two processes: what it adds up, and which turn counts."""

from tools.bench_distributed import QUIET, TRIES, Contender, Stopwatch


class Exchange:
    def start(self, index, gradient):
        return (index, gradient)


def test_a_stopwatch_measures_calls_and_passes_them_on():
    watch, exchange = Stopwatch(), Exchange()
    watch.watch(exchange, "start")
    assert exchange.start(3, "g") == (3, "g")
    assert watch.take()["start"] > 0
    assert set(watch.take().values()) == {0.0}


def test_a_turn_is_repeated_while_others_use_the_cores(monkeypatch):
    busy = iter([{"step": 9.0, "others": 3 * QUIET}, {"step": 1.0, "others": QUIET / 2}, *[{"others": 1.0}] * TRIES])
    contender = Contender("c", [], [])
    monkeypatch.setattr(contender, "_steps", lambda steps: next(busy))
    contender.turn(5)
    assert contender.found == [{"step": 1.0, "others": QUIET / 2}]
    contender.turn(5)
    assert next(busy, None) is None  # never more often than TRIES
    contender.found.pop()
    contender.found.append({"step": 3.0, "others": 0.0})
    assert contender.medians()["step"] == 2.0
