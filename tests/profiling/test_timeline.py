"""Timelines: one slice for each kernel call, where it belongs; Perfetto's own reader agrees."""

import json
from collections import Counter

import pytest

from fqt_deploy.profiling.timeline import KERNELS, STEPS, timeline


@pytest.fixture(scope="module")
def events(profile):
    return json.loads(timeline(profile))["traceEvents"]


def test_a_slice_for_each_call(events, profile):
    kernels = [e for e in events if e["ph"] == "X" and e["tid"] == KERNELS]
    assert len(kernels) == len(profile.timed) * len(profile.kernels)
    assert Counter(e["args"]["layer"] for e in kernels) == Counter(
        {k or "(step)": n * len(profile.timed) for k, n in Counter(k.layer for k in profile.kernels).items()}
    )
    assert sum(e["args"]["1-bit MACs"] for e in kernels) > 0


def test_kernels_lie_in_their_steps(events, profile):
    steps = [e for e in events if e["ph"] == "X" and e["tid"] == STEPS]
    assert [e["name"] for e in steps] == [f"step {i + 1}" for i in range(len(profile.timed))]
    for event in (e for e in events if e["ph"] == "X" and e["tid"] == KERNELS):
        assert any(s["ts"] <= event["ts"] and event["ts"] + event["dur"] <= s["ts"] + s["dur"] + 1e-3 for s in steps)


def test_memory_is_a_counter(events, profile):
    counts = [e["args"]["MB"] for e in events if e["ph"] == "C"]
    assert len(counts) == len(profile.timed) * (len(profile.kernels) + 1)
    assert max(counts) == pytest.approx(max(profile.notes.alive(len(profile.kernels))) / 1e6)


def test_perfetto_reads_it(profile, tmp_path):
    processor = pytest.importorskip("perfetto.trace_processor", reason="perfetto is not installed")
    (tmp_path / "trace.json").write_text(timeline(profile))
    try:
        reader = processor.TraceProcessor(trace=str(tmp_path / "trace.json"))
    except Exception as error:  # noqa: BLE001 - it downloads its program, and says what failed in many ways
        pytest.skip(f"Perfetto's trace processor cannot start: {error}")
    with reader:
        (slices,) = reader.query(
            "select count(*) as n from slice join thread_track on slice.track_id = thread_track.id "
            "join thread using(utid) where thread.name = 'kernels'"
        )
        assert slices.n == len(profile.timed) * len(profile.kernels)
        (counters,) = reader.query("select count(*) as n from counter")
        assert counters.n > 0
        assert not list(reader.query("select name from stats where severity = 'error' and value > 0"))
