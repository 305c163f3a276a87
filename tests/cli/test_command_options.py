"""Every option of fqt-train and fqt-export is set in two ways from one declaration: on the command line, in Python."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fqt_deploy.cli_export import main as export_command
from fqt_deploy.cli_train import main as train_command
from fqt_deploy.command_line import SectionedCommand, given_options, with_flags
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.option import options_in
from fqt_deploy.export_options import ExportOptions
from fqt_deploy.training_options import TrainingOptions

DATA, OUTPUT = {"data": Path("d")}, {"output": Path("w.pt")}
EXAMPLES = {
    TrainingOptions: {
        "data": (["--data", "x"], {"data": "x"}),
        "eval_data": (["--eval-data", "x"], {"eval_data": "x"}),
        "mean": (["--mean", "0.5,0.4,0.25"], {"mean": [0.5, 0.4, 0.25]}),
        "std": (["--std", "0.5"], {"std": 0.5}),
        "flip": (["--flip"], {"flip": True}),
        "crop": (["--crop", "4"], {"crop": 4}),
        "epochs": (["--epochs", "3"], {"epochs": 3}),
        "lr": (["--lr", "1e-2"], {"lr": 0.01}),
        "schedule": (["--schedule", "cosine"], {"schedule": "cosine"}),
        "warmup": (["--warmup", "500"], {"warmup": 500}),
        "patience": (["--patience", "3"], {"patience": 3}),
        "resume": (["--resume"], {"resume": True}),
        "overwrite": (["--overwrite"], {"overwrite": True}),
        "checkpoint": (["--checkpoint", "c"], {"checkpoint": "c"}),
        "best": (["--best", "b"], {"best": "b"}),
        "predict": (["--eval-data", "x", "--predict", "p.npy"], {"eval_data": "x", "predict": "p.npy"}),
        "log": (["--log", "l.csv"], {"log": "l.csv"}),
        "tensorboard": (["--tensorboard", "t"], {"tensorboard": "t"}),
        "watch": (["--watch", "10"], {"watch": 10}),
        "watch_log": (["--watch", "10", "--watch-log", "w.csv"], {"watch": 10, "watch_log": "w.csv"}),
    },
    ExportOptions: {
        "output": (["-o", "x.pt"], {"output": "x.pt"}),
        "checkpoint": (["--checkpoint", "c"], {"checkpoint": "c"}),
        "averages": (["--averages"], {"averages": True}),
        "model": (["--model", "m.py"], {"model": "m.py"}),
    },
}
"""For each option a value other than its default, on the command line and in Python."""
ENOUGH = {TrainingOptions: (["--data", "d"], DATA), ExportOptions: (["-o", "w.pt"], OUTPUT)}
"""What the commands cannot do without."""
WRONG = {
    TrainingOptions: {
        "data": "", "eval_data": "", "mean": "0.5,grey", "std": "nan", "crop": "-1", "epochs": "0", "lr": "fast",
        "schedule": "linear", "warmup": "-1", "patience": "0", "checkpoint": "", "best": "", "predict": "", "log": "",
        "tensorboard": "", "watch": "0", "watch_log": "",
    },
    ExportOptions: {"output": "", "checkpoint": "", "model": ""},
}  # fmt: skip
FLAGS = {TrainingOptions: {"flip", "resume", "overwrite"}, ExportOptions: {"averages"}}
COMMANDS = {TrainingOptions: train_command, ExportOptions: export_command}
EACH = [(cls, name) for cls, found in EXAMPLES.items() for name in found]


def from_the_command_line(cls, arguments):
    options = options_in(cls).values()

    @with_flags(options)
    @click.command(cls=SectionedCommand)
    def command(**values):
        return cls(**given_options(options, values))

    return command.main(arguments, standalone_mode=False)


@pytest.mark.parametrize("cls", EXAMPLES)
def test_every_option_has_an_example_and_a_wrong_value_here(cls):
    assert EXAMPLES[cls].keys() == options_in(cls).keys() == WRONG[cls].keys() | FLAGS[cls]


@pytest.mark.parametrize(("cls", "name"), EACH)
def test_two_ways_give_one_result(cls, name):
    arguments, settings = EXAMPLES[cls][name]
    enough, needed = ENOUGH[cls]
    in_python = cls(**{**needed, **settings})
    assert from_the_command_line(cls, [*enough, *arguments]) == in_python != cls(**needed)


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, found in WRONG.items() for name in found])
def test_wrong_values_are_refused(cls, name):
    enough, needed = ENOUGH[cls]
    flag = options_in(cls)[name].flags[-1]
    result = CliRunner().invoke(COMMANDS[cls], ["nowhere.fqt", *enough, flag, WRONG[cls][name]])
    assert result.exit_code == 1, result.output
    assert f"error[FQT202]: {name} is" in result.output
    with pytest.raises(FqtError, match=name) as caught:
        cls(**{**needed, name: object()})
    assert caught.value.code == "FQT202"


@pytest.mark.parametrize(
    ("cls", "arguments", "said"),
    [
        (TrainingOptions, [], "nothing to do"),
        (TrainingOptions, ["--eval-data", "x"], "nothing to do"),
        (TrainingOptions, ["--data", "x", "--predict", "p"], "--predict needs --eval-data"),
        (TrainingOptions, ["--data", "x", "--watch-log", "w"], "--watch-log needs --watch"),
        (TrainingOptions, ["--data", "x", "--resume", "--overwrite"], "--overwrite would replace"),
        (ExportOptions, ["--checkpoint"], "no file to write"),
    ],
)
def test_options_that_contradict_each_other_are_refused(cls, arguments, said):
    result = CliRunner().invoke(COMMANDS[cls], ["nowhere.fqt", *arguments])
    assert result.exit_code == 1, result.output
    assert "error[FQT202]" in result.output
    assert said in result.output


def test_a_checkpoint_without_a_name_is_the_artifacts_own():
    arguments = ["--checkpoint", "-o", "w.pt"]
    assert from_the_command_line(ExportOptions, arguments).checkpoint == Path("checkpoint.safetensors")


@pytest.mark.parametrize(("cls", "name"), [(TrainingOptions, "fqt-train"), (ExportOptions, "fqt-export")])
def test_help(cls, name, golden):
    result = CliRunner().invoke(COMMANDS[cls], ["--help"], prog_name=name, terminal_width=100)
    assert result.exit_code == 0, result.output
    golden(f"{name}.txt", result.output)
