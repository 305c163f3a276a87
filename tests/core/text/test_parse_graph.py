"""Text as graphs: what may be left out, initial values, and an error with line and column for everything else."""

import re
from pathlib import Path

import pytest
import torch

import fqt_deploy.passes  # noqa: F401 - defines the ops
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import Stage
from fqt_deploy.core.text import graph_text, parse_graph
from fqt_deploy.core.text.filler import filler

GRAPH = """\
graph stage=quantized batch=2
layer body = linear index=0
input %x = x : f32[2, 3]
param %w = param/body.weight : f32[5, 3]
counter %step = step : i64[]
%y = fqt.linear(%x, %w) : f32[2, 5]  {layer=body direction=forward at=model.py:12}
%pair = aten.max.dim(%y, dim=1)
output y = %y
output largest = %pair
"""


def test_everything_that_a_text_says_is_in_the_graph():
    graph = parse_graph(GRAPH.replace("%pair\n", "%pair\noutput nothing = None\n").replace("= %pair", "= %y"))
    assert (graph.stage, graph.batch, graph.selection) == (Stage.QUANTIZED, 2, None)
    assert graph.inputs == ["x", "param/body.weight", "step"]
    assert graph.outputs == ["y", "largest", "nothing"]
    assert {name: tensor.role for name, tensor in graph.state.items()} == {
        "param/body.weight": "param",
        "step": "counter",
    }
    (product,) = graph.calls(torch.ops.fqt.linear.default)
    assert product.meta["record"] is graph.layers[0]
    assert product.meta["stack_trace"] == 'File "model.py", line 12'
    assert (product.meta["phase"], product.meta["direction"]) == ("forward", "forward")


def test_arguments_bind_by_place_and_by_name():
    calls = [
        "aten.sum.dim_IntList(%x, [0], True)",
        "aten.sum.dim_IntList(%x, dim=[0], keepdim=True)",
        "aten.sum.dim_IntList(keepdim=True, dim=[0], self=%x)",
    ]
    texts = [f"graph stage=captured batch=2\ninput %x = x : f32[2, 3]\n%y = {call}\noutput y = %y" for call in calls]
    nodes = [parse_graph(text).output("y") for text in texts]
    assert all(list(node.args[1:]) == [[0], True] and node.kwargs == {} for node in nodes)
    text = "graph stage=captured batch=2\ninput %x = x : f32[2]\n%y = aten.sum(%x, dtype=f64)\noutput y = %y"
    node = parse_graph(text).output("y")
    assert (len(node.args), node.kwargs) == (1, {"dtype": torch.float64})


def test_comments_blank_lines_and_types_may_be_left_out_or_not():
    terse = "\n# a graph\ngraph stage=captured batch=2 # of two\n\n  input %x = x : f32[2,3]\n%y = aten.relu(%x)\n"
    terse += "output y = %y"
    assert graph_text(parse_graph(terse)) == (
        "graph stage=captured batch=2\ninput %x = x : f32[2, 3]\n%y = aten.relu(%x) : f32[2, 3]\noutput y = %y\n"
    )


@pytest.mark.parametrize(
    "constant",
    [
        "-3",
        "1e-05",
        "-0.0",
        "inf",
        "-inf",
        "True",
        "None",
        '"a \\"b\\" \\\\ # c"',
        "[1, [], [0.5]]",
        "f16",
        "cpu",
        "strided",
    ],
)
def test_constants_read_back(constant):
    from fqt_deploy.core.text.literals import constant_text, parse_constant
    from fqt_deploy.core.text.scanner import Scanner

    scanner = Scanner(constant, code="FQT208")
    assert constant_text(parse_constant(scanner, lambda name, at: None)) == constant
    assert scanner.position == len(constant)


def test_the_state_starts_from_given_values_or_from_filler():
    weight = torch.randn(5, 3)
    text = GRAPH.replace("output largest = %pair\n", "").replace("%pair = aten.max.dim(%y, dim=1)\n", "")
    assert parse_graph(text, values={"param/body.weight": weight}).state["param/body.weight"].initial is weight
    first, second = (parse_graph(text).state["param/body.weight"].initial for _ in range(2))
    assert torch.equal(first, second)
    assert first.std() > 0.01
    assert filler("v", "buffer", [64], torch.float32).min() >= 0.5
    assert filler("m", "optimizer", [2], torch.float32).tolist() == [0.0, 0.0]
    with pytest.raises(FqtError, match=r"FQT505.*f32\[3, 5\]; the graph wants f32\[5, 3\]"):
        parse_graph(text, values={"param/body.weight": torch.zeros(3, 5)})


WRONG = {
    "no header": ("graph ", "x ", "1:1", "begins with a line such as"),
    "stage": ("quantized", "quantised", "1:13", "it must be one of captured, normalized, quantized, lowered"),
    "batch": ("batch=2", "", "1:7", "needs batch"),
    "number": ("batch=2", "batch=two", "1:29", "batch must be an integer"),
    "key": ("batch=2", "batch=2 size=3", "1:31", "has no 'size'"),
    "kind of line": ("param %w", "parameter %w", "4:1", "there is no kind of line 'parameter'"),
    "type of an input": (": f32[2, 3]", ": f31[2, 3]", "3:16", "such as f32[8, 40]"),
    "missing type": (" : f32[5, 3]", "", "4:29", "expected ':' and the input's type, found the end of the line"),
    "operator": ("fqt.linear(", "fqt.linaer(", "6:6", "there is no operator 'fqt.linaer'"),
    "overload": ("aten.max.dim(", "aten.max.dm(", "7:9", "there is no operator 'aten.max.dm'"),
    "value": ("(%x, %w)", "(%x, %v)", "6:21", "there is no value '%v'"),
    "argument": ("dim=1", "dims=1", "7:9", "has no argument 'dims'; it has self, dim, keepdim"),
    "twice": ("dim=1", "1, dim=1", "7:9", "is given its argument 'dim' twice"),
    "too many": ("dim=1", "1, True, 3", "7:9", "takes 3 arguments by place, 4 are given"),
    "too few": (", dim=1", "", "7:9", "is not given its argument 'dim'"),
    "order": ("%y, dim=1", "self=%y, 1", "7:31", "cannot follow one with a name"),
    "shape rule": ("f32[5, 3]", "f32[5, 4]", "6:6", "fqt.linear.default cannot take these operands"),
    "stated type": (": f32[2, 5]", ": f32[2, 6]", "6:27", "%y is stated to be f32[2, 6], but fqt.linear"),
    "computed twice": ("%pair =", "%y =", "7:1", "%y is computed twice"),
    "a word of Python": ("%pair", "%sum", "7:1", "a value cannot be called %sum"),
    "layer": ("{layer=body", "{layer=bodi", "6:39", "there is no layer 'bodi'"),
    "two layers": ("input %x", "layer body = conv2d index=1\ninput %x", "3:1", "there are two layers 'body'"),
    "metadata": ("direction=", "side=", "6:50", "there is no metadata 'side'"),
    "place": ("at=model.py:12", "at=model.py", "6:71", "is not a file and a line"),
    "constant": ("dim=1", "dim=one", "7:30", "there is no constant 'one'"),
    "rest of a line": ("output y = %y", "output y = %y %x", "8:15", "expected the end of the line, found '%x'"),
    "two outputs": ("output largest", "output y", "9:9", "there are two outputs 'y'"),
    "two inputs": ("param/body.weight", "x", "4:7", "there are two inputs 'x'"),
    "list": ("dim=1", "dim=[1", "7:32", "expected ',' or ']', found ')'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_said_with_line_and_column(case):
    old, new, place, said = WRONG[case]
    assert GRAPH.count(old) >= 1
    with pytest.raises(FqtError) as caught:
        parse_graph(GRAPH.replace(old, new, 1), origin=Path("graph.fqtir"))
    error = caught.value
    line, column = place.split(":")
    assert (error.code, error.message.partition(": ")[0]) == ("FQT208", f"line {line}, column {column}"), error.message
    assert said in error.message
    assert str(error.location) == f"graph.fqtir:{line}"


def test_the_nearest_name_is_a_hint():
    for old, new, hint in [("fqt.linear(", "fqt.linaer(", "fqt.linear"), ("(%x, %w)", "(%x, %ww)", "%w")]:
        with pytest.raises(FqtError) as caught:
            parse_graph(GRAPH.replace(old, new))
        assert caught.value.hint == f"did you mean {hint!r}?"


def test_the_example_of_the_document_is_a_graph():
    document = (Path(__file__).parents[3] / "docs" / "ir.md").read_text()
    (example,) = re.findall(r"^```\n(graph .*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert graph_text(parse_graph(example)) == example
