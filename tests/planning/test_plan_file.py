"""The file of a plan: what is written is read as the same choices, and no other file is replaced."""

from pathlib import Path

import pytest

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.layer_plan import read_plan
from fqt_deploy.planning.choices import options_for
from fqt_deploy.planning.plan_file import check_plan_output, plan_file, write_plan
from fqt_deploy.settings import options_of
from tests.planning.plans import a_plan


def test_the_file_is_the_plan_in_other_words(tmp_path, golden):
    plan = a_plan((8, None, 1))
    path = tmp_path / "net.plan.toml"
    write_plan(plan, path)
    golden("net.plan.toml", path.read_text())
    choices = dict(zip((layer.path for layer in plan.layers), plan.chosen.choices, strict=True))
    assert options_of({"plan_file": path}) == options_for(options_of({}), choices)


def test_names_of_any_characters(tmp_path):
    paths = ('a"b\\', "grüße\x7f\t", "[*]?")
    path = tmp_path / "net.plan.toml"
    write_plan(a_plan((None, 4, 2), paths=paths, include=("x*", '"')), path)
    found = read_plan(path)
    assert found.exclude == (paths[0],)
    assert [each.pattern for each in found.bits] == [paths[1], "[[][*][]][?]".replace("[]]", "]")]
    assert found.include == ("x*", '"')


def test_other_layers_that_are_excluded_stay_so(tmp_path):
    path = tmp_path / "net.plan.toml"
    write_plan(a_plan(excluded=("stem",)), path)
    assert read_plan(path).exclude == ("stem",)


def test_only_plans_are_replaced(tmp_path):
    path = tmp_path / "net.plan.toml"
    check_plan_output(path)
    write_plan(a_plan(), path)
    check_plan_output(path)
    assert plan_file(a_plan(), path) == path.read_text()
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for wrong in (notes, tmp_path, tmp_path / "missing" / "net.plan.toml", Path("/proc/net.plan.toml")):
        with pytest.raises(FqtError) as caught:
            check_plan_output(wrong)
        assert caught.value.code == "FQT508"
    assert notes.read_text() == "mine"
