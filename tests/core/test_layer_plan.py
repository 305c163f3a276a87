"""The file of a plan: another spelling of options, whose mistakes are told with their line."""

import pytest
from click.testing import CliRunner

from fqt_deploy.build_cache.fingerprint import fingerprint
from fqt_deploy.cli import main as compile_command
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_plan import no_match, read_plan
from fqt_deploy.settings import options_of

PLAN = """\
# a comment
format = 1
include = ["a*", "b"]

[layers]
"a.0" = [1, 8]   # with its times
'a.1' = "fp32"
b = [1, 1]
"a.*" = [1, 2]
"""


@pytest.fixture
def plan(tmp_path):
    def write(text):
        path = tmp_path / "model.plan.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_plan_is_another_spelling_of_options(plan):
    taken = options_of({"plan_file": plan(PLAN)})
    assert taken == options_of(
        {"include": ["a*", "b"], "exclude": ["a.1"], "bits": {"a.0": (1, 8), "b": (1, 1), "a.*": (1, 2)}}
    )
    assert taken.plan_file is None
    moved = plan("# another line\n" + PLAN)
    assert fingerprint(options_of({"plan_file": moved})) == fingerprint(taken)
    assert taken.numerics() == options_of({"include": ["a*", "b"], "exclude": ["a.1"]}).numerics()


def test_what_is_given_beside_a_plan_comes_first(plan):
    path = plan(PLAN.replace('include = ["a*", "b"]', ""))
    taken = options_of({"plan_file": path, "exclude": ["c"], "include": ["*"], "bits": {"b": (1, 4)}})
    assert taken.include == ("*",)
    assert taken.exclude == ("c", "a.1")
    assert [(each.pattern, each.activations) for each in taken.bits] == [("b", 4), ("a.0", 8), ("b", 1), ("a.*", 2)]
    assert options_of({"plan_file": plan(PLAN), "include": ["a*", "b"]}) == options_of({"plan_file": plan(PLAN)})
    with pytest.raises(FqtError, match="has other globs to include") as caught:
        options_of({"plan_file": plan(PLAN), "include": ["*"]})
    assert caught.value.code == "FQT202"


WRONG = {
    "syntax": ('format = 1\n[layers]\n"a" = [1, 4\n"b" = [1, 2]\n', 4, "Unclosed array"),
    "twice": ('format = 1\n[layers]\n"a" = [1, 4]\n"a" = [1, 2]\n', 4, "Cannot overwrite a value"),
    "no format": ('[layers]\n"a" = [1, 4]\n', None, "format None"),
    "another format": ("# plan\n\nformat = 2\n", 3, "format 2; this version reads 1"),
    "unknown key": ('format = 1\n"a" = [1, 4]\n', 2, "'a' is no key of a plan"),
    "bits": ('format = 1\n[layers]\n"a" = [1, 4]\n"b" = [1, 5]\n', 4, r"'b' is \[1, 5\]; it must be 'fp32' or"),
    "weights": ('format = 1\n[layers]\n"a" = [3, 4]\n', 3, "bits of weights"),
    "one number": ('format = 1\n[layers]\n"a" = 4\n', 3, "'a' is 4"),
    "a flag": ('format = 1\n[layers]\n"a" = [true, 4]\n', 3, "'a' is"),
    "another word": ('format = 1\n[layers]\n"a" = "bf16"\n', 3, "'a' is 'bf16'"),
    "no quotation marks": ("format = 1\n[layers]\na.b = [1, 4]\n", 3, "'a' is {'b'"),
    "an empty name": ('format = 1\n[layers]\n"" = [1, 4]\n', 3, "an empty name"),
    "include": ('format = 1\ninclude = "a"\n', 2, "must be a list of globs"),
    "layers": ("format = 1\nlayers = 3\n", 2, "must be a table"),
    "a layer named as a key": ('format = 1\n[layers]\ninclude = [1, 4]\n"format" = 2\n', 4, "'format' is 2"),
    "a separator that ends no line": ('format = 1\n# a\u2028b\n[layers]\n"a" = 4\n', 4, "'a' is 4"),
    "nested deeply": (f"format = 1\n[layers]\na = {'[' * 9999}{']' * 9999}\n", None, "recursion|nest"),
    "a long integer": (f"format = 1\n[layers]\na = [1, {'9' * 9999}]\n", None, "Exceeds the limit"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_mistakes_are_told_with_their_line(kind, plan):
    text, line, said = WRONG[kind]
    with pytest.raises(FqtError, match=said) as caught:
        read_plan(plan(text))
    assert caught.value.code == "FQT211"
    location = caught.value.location
    assert (location.line if location is not None else None) == line
    if line is not None:
        assert f"--> model.plan.toml:{line}\n {line} | {text.split(chr(10))[line - 1]}" in caught.value.render()


def test_a_file_as_an_editor_of_windows_writes_it(plan, tmp_path):
    """With a byte order mark, and two characters at the ends of lines."""
    path = tmp_path / "windows.plan.toml"
    path.write_bytes(b"\xef\xbb\xbf" + PLAN.replace("\n", "\r\n").encode())
    assert read_plan(path) == read_plan(plan(PLAN))
    path.write_bytes(b"\xef\xbb\xbfformat = 1\r\n[layers]\r\na = 4\r\n")
    with pytest.raises(FqtError) as caught:
        read_plan(path)
    assert "--> windows.plan.toml:3\n 3 | a = 4" in caught.value.render()


def test_a_glob_whose_line_is_not_known(plan):
    """A table written in one line: no other line is shown in its place."""
    (glob,) = read_plan(plan('format = 1\nlayers = {"heads.*" = "fp32"}\n')).exclude
    error = no_match("--exclude", glob, ["0", "1"])
    assert (error.code, error.location) == ("FQT204", None)
    assert error.message == f"'heads.*' matches no layer, in {glob.path}"


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    for path, content in ((tmp_path / "none", None), (tmp_path / "bytes", b"\xff\xfe"), (tmp_path, None)):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FqtError, match=path.name) as caught:
            options_of({"plan_file": path})
        assert caught.value.code == "FQT211"


@pytest.mark.parametrize("line", ['"heads.*" = "fp32"', '"heads.*" = [1, 2]', 'include = ["0", "heads.*"]'])
def test_a_glob_that_matches_no_layer_is_told_with_its_line(line, plan, model_file):
    model = model_file(
        "import torch\n"
        "def build_model():\n    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))\n"
        "def example_inputs():\n    return torch.randn(8, 64), torch.arange(8) % 4\n"
    )
    text = f"format = 1\n{line}\n" if line.startswith("include") else f'format = 1\n[layers]\n"0" = [1, 2]\n{line}\n'
    path = plan(text)
    result = CliRunner().invoke(compile_command, [str(model), "--check", "--plan-file", str(path)])
    assert result.exit_code == 1
    assert "error[FQT204]: 'heads.*' matches no layer" in result.output
    assert f"--> model.plan.toml:{len(text.splitlines())}\n" in result.output
    assert "the layers are: 0, 1" in result.output
