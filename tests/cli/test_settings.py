"""Every option is set in three ways, from one declaration: on the command line, in a model file, and in Python."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.cli import main as compile_command
from fqt_deploy.cli_options import COMMAND_OPTIONS
from fqt_deploy.command_line import SectionedCommand, given_options, with_flags
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.settings import all_settings, merge_settings, options_of
from fqt_deploy.targets.cpu.options import CpuOptions
from fqt_deploy.targets.cuda.options import CudaOptions

MODEL = """
import torch

def build_model():
    return torch.nn.Linear(4, 2)

def example_inputs():
    return torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)

def compile_options():
    return {settings!r}
"""

CUDA, SGD, RMSPROP = {"target": "cuda"}, {"optimizer": "sgd"}, {"optimizer": "rmsprop"}
ADAFACTOR, ADADELTA = {"optimizer": "adafactor"}, {"optimizer": "adadelta"}
ADAGRAD, RADAM, NADAM = {"optimizer": "adagrad"}, {"optimizer": "radam"}, {"optimizer": "nadam"}
PLAN = str(Path(__file__).parent / "layers.plan.toml")
EXAMPLES = {
    "preset": (["--preset", "close"], {"preset": "close"}),
    "prediction": (["--prediction", "boxes"], {"prediction": "boxes"}),
    "target": (["--target", "rpi5"], {"target": "rpi5"}),
    "mcpu": (["--mcpu", "znver4"], {"mcpu": "znver4"}),
    "arch": (["--target", "cuda", "--arch", "sm_90a"], {**CUDA, "arch": "sm_90a"}),
    "tf32": (["--target", "cuda", "--tf32"], {**CUDA, "tf32": True}),
    "recipe": (["--recipe", "psq-8"], {"recipe": "psq-8"}),
    "agp": (["--agp", "once"], {"agp": "once"}),
    "grad_bits": (["--grad-bits", "2"], {"grad_bits": 2}),
    "grid": (["--grid", "minmax"], {"grid": "minmax"}),
    "projection": (["--projection", "off"], {"projection": "off"}),
    "seed": (["--seed", "7"], {"seed": 7}),
    "include": (["--include", "a.*", "--include", "b"], {"include": ["a.*", "b"]}),
    "exclude": (["--exclude", "a.*"], {"exclude": "a.*"}),
    "frozen": (["--frozen", "1-bit"], {"frozen": "1-bit"}),
    "weight_bits": (["--weight-bits", "2"], {"weight_bits": 2}),
    "activation_bits": (["--activation-bits", "2"], {"activation_bits": 2}),
    "activation_grid": (["--activation-grid", "sign"], {"activation_grid": "sign"}),
    "bits": (["--bits", "head.*=1,4", "--bits", "*=1,2"], {"bits": {"head.*": (1, 4), "*": (1, 2)}}),
    "plan_file": (["--plan-file", PLAN], {"plan_file": PLAN}),
    "optimizer": (["--optimizer", "adamw"], {"optimizer": "adamw"}),
    "lr": (["--lr", "0.5"], {"lr": 0.5}),
    "weight_decay": (["--weight-decay", "1e-4"], {"weight_decay": 1e-4}),
    "groups": (
        ["--group", "head.*=0.1", "--group", "a.*,*.bias=lr:0.5,weight_decay:0"],
        {"groups": {"head.*": 0.1, "a.*,*.bias": {"lr": 0.5, "weight_decay": 0}}},
    ),
    "decay": (["--decay", "matrices"], {"decay": "matrices"}),
    "no_decay": (["--no-decay", "*.bias", "--no-decay", "norm.*"], {"no_decay": ["*.bias", "norm.*"]}),
    "clip_norm": (["--clip-norm", "1"], {"clip_norm": 1}),
    "clip_value": (["--clip-value", "0.5"], {"clip_value": 0.5}),
    "accumulate": (["--accumulate", "4"], {"accumulate": 4}),
    "ema": (["--ema", "0.999"], {"ema": 0.999}),
    "metrics": (["--metrics", "grad_norm", "--metrics", "param_norm"], {"metrics": ["grad_norm", "param_norm"]}),
    "betas": (["--betas", "0.8,0.9"], {"betas": (0.8, 0.9)}),
    "eps": (["--eps", "1e-6"], {"eps": 1e-6}),
    "moment_bits": (["--moment-bits", "8"], {"moment_bits": 8}),
    "momentum": (["--optimizer", "sgd", "--momentum", "0.9"], {**SGD, "momentum": 0.9}),
    "dampening": (
        ["--optimizer", "sgd", "--momentum", "0.9", "--dampening", "0.1"], {**SGD, "momentum": 0.9, "dampening": 0.1}
    ),
    "nesterov": (
        ["--optimizer", "sgd", "--momentum", "0.9", "--nesterov"], {**SGD, "momentum": 0.9, "nesterov": True}
    ),
    "alpha": (["--optimizer", "rmsprop", "--alpha", "0.9"], {**RMSPROP, "alpha": 0.9}),
    "beta2_decay": (["--optimizer", "adafactor", "--beta2-decay", "-0.5"], {**ADAFACTOR, "beta2_decay": -0.5}),
    "scale_floor": (["--optimizer", "adafactor", "--scale-floor", "0.1"], {**ADAFACTOR, "scale_floor": 0.1}),
    "update_bound": (["--optimizer", "adafactor", "--update-bound", "2"], {**ADAFACTOR, "update_bound": 2}),
    "rho": (["--optimizer", "adadelta", "--rho", "0.8"], {**ADADELTA, "rho": 0.8}),
    "lr_decay": (["--optimizer", "adagrad", "--lr-decay", "0.1"], {**ADAGRAD, "lr_decay": 0.1}),
    "initial_accumulator_value": (
        ["--optimizer", "adagrad", "--initial-accumulator-value", "0.1"], {**ADAGRAD, "initial_accumulator_value": 0.1}
    ),
    "decoupled_weight_decay": (
        ["--optimizer", "radam", "--decoupled-weight-decay"], {**RADAM, "decoupled_weight_decay": True}
    ),
    "momentum_decay": (["--optimizer", "nadam", "--momentum-decay", "0"], {**NADAM, "momentum_decay": 0}),
    "remat": (["--remat", "auto"], {"remat": "auto"}),
    "distributed": (["--distributed", "4-bit"], {"distributed": "4-bit"}),
    "batch_norm": (
        ["--distributed", "fp32", "--batch-norm", "synchronized"],
        {"distributed": "fp32", "batch_norm": "synchronized"},
    ),
    "tune": (["--tune"], {"tune": True}),
    "tuning_log": (["--tuning-log", "log.jsonl"], {"tuning_log": "log.jsonl"}),
    "verify": (["--verify", "off"], {"verify": "off"}),
    "dump_ir": (["--dump-ir", "ir"], {"dump_ir": "ir"}),
    "print_after": (["--print-after", "insert-scq"], {"print_after": ["insert-scq"]}),
    "time_passes": (["--time-passes"], {"time_passes": True}),
}  # fmt: skip
"""For each option a value other than its default, on the command line and as a setting."""


def from_the_command_line(arguments):
    options = [*COMMAND_OPTIONS.values(), *all_settings().values()]

    @with_flags(options)
    @click.command(cls=SectionedCommand)
    def command(**given):
        return given_options(all_settings().values(), given)

    return command.main([str(a) for a in arguments], standalone_mode=False)


def test_every_option_has_an_example_here():
    assert list(EXAMPLES) == list(all_settings())


@pytest.mark.parametrize("name", EXAMPLES)
def test_three_ways_give_one_result(name, model_file):
    arguments, settings = EXAMPLES[name]
    in_python = options_of(settings)
    in_file = options_of(load_model(model_file(MODEL.format(settings=settings))).options)
    on_command_line = options_of(merge_settings({}, from_the_command_line(arguments)))
    assert in_python == in_file == on_command_line
    assert in_python != options_of({})


WRONG = {
    "preset": "slow", "prediction": "",
    "target": "tpu", "mcpu": "", "arch": "", "recipe": "psq", "agp": "all", "grad_bits": "5", "grid": "even",
    "projection": "on", "seed": "-1", "include": "", "exclude": "", "frozen": "off",
    "weight_bits": "3", "activation_bits": "5", "activation_grid": "x", "bits": "a=1", "plan_file": "",
    "optimizer": "rprop", "lr": "fast",
    "weight_decay": "-1", "groups": "head", "betas": "0.9,1", "eps": "nan", "momentum": "-0.9", "decay": "some",
    "no_decay": "", "clip_norm": "-1", "clip_value": "nan", "accumulate": "0", "ema": "1", "metrics": "loss",
    "dampening": "-1", "alpha": "1", "beta2_decay": "0.1", "scale_floor": "-1", "update_bound": "0.5", "rho": "1",
    "lr_decay": "-1", "initial_accumulator_value": "nan", "momentum_decay": "-1", "moment_bits": "16",
    "remat": "on", "distributed": "8-bit", "batch_norm": "global",
    "tuning_log": "", "verify": "all", "dump_ir": "", "print_after": "",
}  # fmt: skip
FLAGS = {"tf32", "nesterov", "decoupled_weight_decay", "tune", "time_passes"}
NEEDS = {
    "arch": CUDA,
    "tf32": CUDA,
    "momentum": SGD,
    "dampening": SGD,
    "alpha": RMSPROP,
    "beta2_decay": ADAFACTOR,
    "scale_floor": ADAFACTOR,
    "update_bound": ADAFACTOR,
    "rho": ADADELTA,
    "lr_decay": ADAGRAD,
    "initial_accumulator_value": ADAGRAD,
    "decoupled_weight_decay": RADAM,
    "momentum_decay": NADAM,
    "nesterov": {**SGD, "momentum": 0.9},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_on_the_command_line(name, model_file):
    context = [text for key, value in NEEDS.get(name, {}).items() for text in (f"--{key}", value)]
    arguments = [model_file(MODEL.format(settings={})), *context, all_settings()[name].flags[0], WRONG[name]]
    result = CliRunner().invoke(compile_command, [str(a) for a in arguments])
    assert result.exit_code == 1, result.output
    assert f"error[{'FQT401' if name == 'target' else 'FQT202'}]" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", EXAMPLES)
def test_wrong_values_are_refused_as_settings(name, model_file):
    settings = {**NEEDS.get(name, {}), name: object()}
    with pytest.raises(FqtError) as caught:
        options_of(settings)
    assert caught.value.code == ("FQT401" if name == "target" else "FQT202")
    assert name in caught.value.message
    path = model_file(MODEL.format(settings={**settings, name: 3j}))
    with pytest.raises(FqtError, match=name):
        options_of(load_model(path).options)


def test_every_option_is_tried_with_a_wrong_value():
    assert WRONG.keys() | FLAGS == all_settings().keys()


def test_an_option_of_another_target_or_optimizer_is_refused():
    for settings, said, hint in (
        ({"target": "cuda", "mcpu": "znver4"}, "target cuda has no mcpu", "it has arch, tf32"),
        ({"arch": "sm_80"}, "target cpu has no arch", "it has mcpu"),
        ({"target": "rpi5", "tf32": True}, "target rpi5 has no tf32", "it has mcpu"),
        ({"momentum": 0.9}, "optimizer adam has no momentum", "it has lr, weight_decay, groups, "),
    ):
        with pytest.raises(FqtError) as caught:
            options_of(settings)
        assert (caught.value.code, caught.value.message) == ("FQT202", said)
        assert (caught.value.hint or "").startswith(hint)
    assert options_of({"target": "cuda", "mcpu": None}).target_options == CudaOptions()


def test_unknown_options_are_refused_with_all_that_there_are():
    with pytest.raises(FqtError, match=r"unknown option\(s\): learning_rate") as caught:
        options_of({"learning_rate": 0.1})
    assert caught.value.hint == f"options are {', '.join(all_settings())}"


def test_the_command_line_wins_over_the_model_file():
    file = {"recipe": "scq", "optimizer": "sgd", "momentum": 0.9, "target": "cuda", "tf32": True, "tune": True}
    assert merge_settings(file, {"recipe": "none"}) == {**file, "recipe": "none"}
    assert merge_settings(file, {"optimizer": "sgd"}) == file
    assert options_of(merge_settings(file, from_the_command_line(["--no-tf32", "--no-tune"]))) == options_of(
        {**file, "tf32": False, "tune": False}
    )
    merged = merge_settings(file, {"optimizer": "adam", "target": "cpu", "mcpu": "znver4"})
    assert merged == {"recipe": "scq", "optimizer": "adam", "target": "cpu", "mcpu": "znver4", "tune": True}
    assert options_of(merged) == CompileOptions(recipe="scq", tune=True, target_options=CpuOptions(mcpu="znver4"))


def test_help(golden):
    result = CliRunner().invoke(compile_command, ["--help"], prog_name="fqt-compile", terminal_width=100)
    assert result.exit_code == 0, result.output
    golden("help.txt", result.output)


def test_listing_options_imports_neither_tvm_nor_torch():
    program = "import sys; from fqt_deploy.cli import main; print(sorted({'torch', 'tvm', 'rich'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
