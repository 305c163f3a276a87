"""``fqt-compile --passes``: chosen passes on a model or on a graph in a file, and nothing else."""

import pytest
from click.testing import CliRunner

from fqt_deploy.cli import main as compile_command
from fqt_deploy.core.text import parse_graph
from fqt_deploy.passes.pass_names import options_text, pass_classes

MODEL = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(torch.relu(self.body(x.flatten(1))))

def build_model():
    return Model()

def example_inputs():
    return torch.randn(16, 1, 8, 8), torch.randint(0, 10, (16,))
"""
GRAPH = "graph stage=captured batch=2\ninput %x = x : f32[2, 3]\n%y = aten.detach(%x)\noutput y = %y\n"


def run(*arguments):
    return CliRunner().invoke(compile_command, [str(a) for a in arguments])


def fails(result, code, said):
    assert result.exit_code == 1, result.output
    assert f"error[{code}]" in result.output
    assert said in result.output
    assert "Traceback" not in result.output


def test_one_pass_after_the_other_is_both_at_once(model_file, tmp_path):
    model, first, second = model_file(MODEL), "normalize-views,normalize-products", "annotate-layers{exclude=[body]}"
    half, whole = tmp_path / "half.fqtir", tmp_path / "whole.fqtir"
    assert run(model, "--batch", 4, "--passes", first, "-o", half).exit_code == 0
    result = run(half, "--passes", second)
    assert result.exit_code == 0, result.output
    assert run(model, "--batch", 4, "--passes", f"{first},{second}", "-o", whole).exit_code == 0
    assert parse_graph(result.output).batch == 4
    assert result.output == whole.read_text()
    assert "reason=\"excluded by 'body'\"" in result.output
    assert "at=model.py:11" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.fqtir", "model.py", "whole.fqtir"]


def test_no_passes_show_the_graph_as_it_was_captured(model_file):
    result = run(model_file(MODEL), "--passes", "")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("graph stage=captured batch=16\n")
    assert "aten.addmm" in result.output


def test_what_dump_ir_writes_can_be_given_back(model_file, tmp_path):
    assert (
        run(model_file(MODEL), "--emit", "onnx-infer", "-o", tmp_path / "m", "--dump-ir", tmp_path / "ir").exit_code
        == 0
    )
    before, after = (next((tmp_path / "ir").glob(f"*-{name}.fqtir")) for name in ("binarize-forward", "select-nested"))
    result = run(before, "--passes", "select-nested{bits=3 required=False}")
    assert result.exit_code == 0, result.output
    assert result.output.count("\n") == after.read_text().count("\n")


def test_the_list_of_passes_shows_their_options():
    output = run("--list-passes").output
    assert all(options_text(kind) in output for kind in pass_classes().values())
    assert "options: bits=4 (1|2|3|4|8), grid=zero (zero|minmax)" in output


@pytest.mark.parametrize(
    ("text", "arguments", "code", "said"),
    [
        (GRAPH, ["--passes", "normalize-view"], "FQT206", "did you mean 'normalize-views'?"),
        (GRAPH, ["--passes", "insert-scq{bits=9}"], "FQT209", "bits is '9'"),
        (GRAPH.replace("%x)", "%z)"), ["--passes", ""], "FQT208", "line 3, column 18: there is no value '%z'"),
        (GRAPH.replace("%x)", "%z)"), ["--passes", ""], "FQT208", " 3 | %y = aten.detach(%z)"),
        (GRAPH, ["--passes", "", "--batch", 4], "FQT202", "is a graph for batches of 2"),
        (GRAPH, ["--passes", "", "--recipe", "scq"], "FQT202", "--recipe has no effect beside --passes"),
        (GRAPH, ["--passes", "", "--emit", "so"], "FQT202", "--emit has no effect beside --passes"),
        (GRAPH, ["--passes", "", "-o", "/nowhere/x"], "FQT508", "cannot write /nowhere/x"),
    ],
)
def test_mistakes(tmp_path, text, arguments, code, said):
    path = tmp_path / "graph.fqtir"
    path.write_text(text)
    fails(run(path, *arguments), code, said)


def test_a_file_that_is_no_text(tmp_path):
    fails(run(tmp_path / "none.fqtir", "--passes", ""), "FQT208", "No such file")
    (tmp_path / "image.fqtir").write_bytes(b"\xff\xfe\x00")
    fails(run(tmp_path / "image.fqtir", "--passes", ""), "FQT208", "it is no text")


def test_a_graph_that_is_illegal_is_a_bug_of_who_made_it(tmp_path):
    path = tmp_path / "graph.fqtir"
    path.write_text(GRAPH.replace("aten.detach", "fqt.sign"))
    result = run(path, "--passes", "")
    assert result.exit_code == 70
