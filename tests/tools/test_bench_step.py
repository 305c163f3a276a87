import pytest
import torch

from fqt_deploy.capture.load_model import ModelSource
from tools.bench_step import (
    TorchConfiguration,
    calls_in_a_turn,
    configurations,
    fastest_adam,
    interleaved_times,
    parse,
    summarize,
    torch_step,
)


def source():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, 4, 4, generator=generator), torch.randint(0, 5, (8,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5))
    return ModelSource(model, torch.nn.functional.cross_entropy, (x, y))


def test_configurations_cover_all_combinations():
    names = [c.name for c in configurations(compiled=True)]
    assert len(set(names)) == 8
    assert "eager_fp32" in names
    assert "compile_bf16_channels_last" in names
    assert not any("compile" in c.name for c in configurations(compiled=False))


@pytest.mark.parametrize("configuration", configurations(compiled=False), ids=lambda c: c.name)
def test_torch_steps_train(configuration):
    step = torch_step(source(), configuration, {"lr": 1e-2})
    losses = [step() for _ in range(10)]
    assert losses[-1] < losses[0]


def test_memory_format_does_not_change_the_numbers():
    plain = torch_step(source(), TorchConfiguration(), {"lr": 1e-2})
    last = torch_step(source(), TorchConfiguration(channels_last=True), {"lr": 1e-2})
    assert [plain() for _ in range(3)] == pytest.approx([last() for _ in range(3)], rel=1e-4)


def test_adam_is_one_of_torch_s_implementations():
    adam = fastest_adam(source(), 1e-3)
    assert adam.pop("lr") == 1e-3
    assert adam in ({}, {"foreach": True}, {"fused": True})


def test_contenders_take_turns(monkeypatch):
    """Once warm; one that is slow is not warmed twice, one that is hopeless has no second turn, ours always has."""
    calls: list[str] = []
    seconds = {"ours": 30.0, "eager_fp32": 1.0, "eager_bf16": 3.9, "compile_bf16": 11.0}

    def run(step, count):
        calls.extend([step()] * count)
        return seconds[step()]

    monkeypatch.setattr("tools.bench_step._seconds", run)
    steps = {name: lambda name=name: name for name in seconds}
    turns = calls_in_a_turn(steps)
    assert turns == {"ours": 1, "eager_fp32": 1, "eager_bf16": 1, "compile_bf16": 1}
    assert calls == ["ours", "eager_fp32", "eager_fp32", "eager_bf16", "eager_bf16", "compile_bf16"]
    calls.clear()
    times = interleaved_times(steps, turns, 3)
    assert calls == ["ours", "eager_fp32", "eager_bf16", "compile_bf16", *["ours", "eager_fp32", "eager_bf16"] * 2]
    assert {name: len(found) for name, found in times.items()} == {
        "ours": 3, "eager_fp32": 3, "eager_bf16": 3, "compile_bf16": 1
    }  # fmt: skip


def test_summary_compares_with_the_best():
    times = {
        "ours": [0.1, 9.0, 0.05],
        "eager_fp32": [2.0],
        "eager_fp32_channels_last": [1.0],
        "eager_bf16": [0.5],
        "compile_bf16": [0.6],
    }
    summary = summarize(times, {"ours": {"mb": 10.0, "step_mb": 5.0}, "torch": {"mb": 100.0, "step_mb": 60.0}})
    assert (summary["ours_s"], summary["fastest_s"]["ours"]) == (0.1, 0.05)
    assert summary["eager_fp32_s"] == 2.0
    assert summary["best_fp32_s"] == 1.0
    assert summary["ratio_best_fp32"] == pytest.approx(10)
    assert summary["best_bf16"] == "eager_bf16"
    assert summary["ratio_best_bf16"] == pytest.approx(5)
    assert (summary["peak_mem_ours_mb"], summary["peak_mem_torch_mb"]) == (10.0, 100.0)
    assert summary["ratio_step_mem"] == pytest.approx(12)


def test_command_line():
    arguments = parse(["--model", "resnet18", "--batch", "64", "--threads", "1", "--agp", "once", "--skip-compile"])
    assert (arguments.model, arguments.batch, arguments.threads, arguments.agp) == ("resnet18", 64, 1, "once")
    assert arguments.skip_compile
