"""Errors: the line of the user's code they point at, and what is shown of them."""

import linecache
import re
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch import fx

from fqt_deploy.core.diagnostics import CODES, FqtError, InvariantError, SourceLocation, together, user_root

PACKAGE = Path(__file__).parents[2] / "fqt_deploy"


def node_with(*frames, **meta):
    """A node whose stack trace has these ``(file, line)``, outermost first."""
    node = fx.Graph().placeholder("conv")
    node.meta |= {
        "stack_trace": "".join(f'  File "{file}", line {line}, in f\n    g()\n' for file, line in frames),
        **meta,
    }
    return node


@pytest.fixture
def model(tmp_path):
    """A file of a person, with three lines."""
    linecache.clearcache()
    path = tmp_path / "model.py"
    path.write_text("import torch\n    y = layer(x)\nprint(y)\n")
    return path


def test_a_node_points_to_the_innermost_line_in_the_users_folder(model):
    installed, ours = torch.nn.Linear.forward.__code__.co_filename, PACKAGE / "core" / "graph.py"
    node = node_with((model, 3), (model, 2), ("/elsewhere/helper.py", 9), (installed, 1), (ours, 1), ("<string>", 1))
    with user_root(model.parent):
        location = SourceLocation.of(node)
    assert (location.path, location.line, str(location)) == (model.resolve(), 2, "model.py:2")
    assert location.text == "    y = layer(x)"
    assert str(SourceLocation.of(node)) == "/elsewhere/helper.py:9", "without a root, any file that is not installed"


def test_nodes_without_a_line_of_the_user_point_nowhere(model):
    with user_root(model.parent):
        assert SourceLocation.of(node_with(("/elsewhere/helper.py", 9))) is None
    assert SourceLocation.of(fx.Graph().placeholder("x")) is None


def test_the_root_holds_within_its_context_only(model):
    node = node_with(("/elsewhere/helper.py", 9))
    with pytest.raises(ZeroDivisionError), user_root(model.parent):
        _ = 1 / 0
    assert SourceLocation.of(node) is not None


def test_an_error_points_to_the_innermost_line_it_passed_through():
    def fails():
        torch.zeros(2) + torch.zeros(3)

    with pytest.raises(RuntimeError) as caught:
        fails()
    location = SourceLocation.of_error(caught.value)
    assert (location.path.name, location.text.strip()) == (Path(__file__).name, "torch.zeros(2) + torch.zeros(3)")
    frame = SourceLocation.of_frame(sys._getframe())
    assert frame.text.strip() == "frame = SourceLocation.of_frame(sys._getframe())"


def test_rendering_shows_line_node_and_hint(model):
    with user_root(model.parent):
        error = FqtError(
            "no lowering", code="FQT203", node=node_with((model, 2), phase="forward", layer="a.b"), hint="other"
        )
    assert error.render().splitlines() == [
        "error[FQT203]: no lowering",
        "  --> model.py:2",
        " 2 |     y = layer(x)",
        "   = note: node %conv (forward), module a.b",
        "   = help: other",
    ]
    assert str(error) == "FQT203: no lowering"
    assert "".join(traceback.format_exception_only(error)).splitlines() == [
        "fqt_deploy.core.diagnostics.FqtError: FQT203: no lowering",
        *error.render().splitlines()[1:],
    ]


def test_rendering_without_any_of_them(model):
    assert FqtError("bad", code="FQT202").render() == "error[FQT202]: bad"
    model.unlink()
    error = FqtError("bad", code="FQT203", node=node_with((model, 2)))
    assert error.render().splitlines() == ["error[FQT203]: bad", f"  --> {model}:2", "   = note: node %conv"]


def test_several_errors_are_told_as_one_each_once(model):
    def error(line, layer, **meta):
        return FqtError("bad", code="FQT203", node=node_with((model, line), layer=layer, **meta), hint="other")

    with user_root(model.parent):
        first, again, second = error(2, "a", phase="forward"), error(2, "a", phase="backward"), error(2, "b")
    assert together([first, again]) is first
    both = together([first, together([again, second])])
    assert both.parts == (first, second)
    assert (both.code, both.node, both.location, both.hint) == ("FQT203", first.node, first.location, "other")
    assert both.message == "2 things have to change:\n  bad at model.py:2\n  bad at model.py:2"
    assert both.render() == f"{first.render()}\n{second.render()}\n2 errors"
    assert [part.module for part in both.parts] == ["a", "b"]
    assert both.__notes__ == ["    = help: other"], "once"


def test_a_broken_invariant_tells_the_pass():
    error = InvariantError("lost", node=node_with(phase="backward"))
    error.add_note("in pass 'p'")
    assert error.code == "FQT900"
    assert error.render().splitlines()[1:] == ["   = note: node %conv (backward)", "   = note: in pass 'p'"]
    assert error.__notes__ == error.render().splitlines()[1:], "each once"


def test_a_traceback_ends_with_notes_that_were_added():
    error = FqtError("bad", code="FQT202", hint="good")
    error.add_note("in pass 'p'")
    assert error.__notes__ == ["   = help: good", "in pass 'p'"]
    error.hint = None
    assert error.__notes__ == ["in pass 'p'"]


def test_every_code_that_is_raised_is_defined_and_every_defined_one_is_raised():
    sources = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "diagnostics.py")
    raised = set(re.findall(r'"(FQT\d{3})"', sources)) | {"FQT900"}
    assert raised == CODES.keys()
