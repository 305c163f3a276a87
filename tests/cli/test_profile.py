"""The command fqt-profile."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fqt_deploy.cli_profile import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def saved(digits_artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    files = (
        "--save",
        folder / "p.json",
        "--json",
        folder / "r.json",
        "--csv",
        folder / "r.csv",
        "--trace",
        folder / "t.json",
    )
    result = run(digits_artifact, "--steps", 2, *files)
    assert result.exit_code == 0, result.output
    assert "kernels sum to" in result.output
    return folder


def test_files_say_the_same(saved):
    rows = json.loads((saved / "r.json").read_text())["rows"]
    with (saved / "r.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == [row["layer"] for row in table]
    assert float(table[0]["seconds"]) == rows[0]["seconds"]
    assert json.loads((saved / "t.json").read_text())["traceEvents"]


def test_rows_are_sorted_and_filtered(saved):
    result = run(saved / "p.json", "--sort", "time", "--only", "features.*", "--direction", "forward")
    assert result.exit_code == 0, result.output
    lines = result.output.split("\n\n")[0].splitlines()[1:]
    assert all(line.startswith("features.") and " forward " in line for line in lines)
    times = [float(next(word for word in line.split() if "." in word and word[0].isdigit())) for line in lines]
    assert times == sorted(times, reverse=True)


def test_profiles_are_compared(saved):
    (saved / "pi.json").write_bytes((saved / "p.json").read_bytes())
    result = run(saved / "p.json", saved / "pi.json")
    assert result.exit_code == 0, result.output
    header, first, *_ = (line.split() for line in result.output.splitlines())
    assert header == ["layer", "direction", "p", "pi"]  # one model on two machines: their names would be one
    assert first[2] == first[3]
    same = run(saved / "p.json", saved / "p.json").output.splitlines()[0]
    assert f"{saved / 'p.json'} (1)" in same
    assert f"{saved / 'p.json'} (2)" in same


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--only", "nothing"), "FQT204"), (("--ir", "nowhere"), "FQT501"), (("--watched", "nowhere"), "FQT502")],
)
def test_mistakes(saved, arguments, code):
    result = run(saved / "p.json", *arguments)
    assert result.exit_code == 1
    assert f"error[{code}]" in result.output


def test_a_missing_artifact(tmp_path):
    result = run(tmp_path / "none.fqt")
    assert result.exit_code == 1
    assert "error[FQT501]" in result.output


def test_it_imports_neither_torch_nor_the_compiler(digits_artifact):
    program = (
        "import sys\nfrom fqt_deploy.cli_profile import main\n"
        "try: main([sys.argv[1], '--steps', '1', '-q'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'tvm', 'fqt_deploy.compiler', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(digits_artifact)], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr


def test_pytorch_is_measured_beside_a_saved_profile(saved):
    model = Path(__file__).parents[2] / "examples" / "digits_cnn.py"
    result = run(saved / "p.json", "--model", model, "--torch", "fp32", "--save", saved / "with.json")
    assert result.exit_code == 0, result.output
    assert "PyTorch fp32" in result.output
    assert "speedup" in result.output
    wrong = run(saved / "p.json", "--model", model, "--torch", "fp16")
    assert wrong.exit_code == 1
    assert "error[FQT202]" in wrong.output
