"""Passes by name: every recipe as text and back, options with their types, and what is said to mistakes."""

import dataclasses
from pathlib import Path

import pytest

import fqt_deploy.passes
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.optimizer import SGD, Adam, AdamW, ParameterGroup
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.annotate_layers import AnnotateLayers
from fqt_deploy.passes.append_optimizer import AppendOptimizer
from fqt_deploy.passes.insert_scq import InsertSCQ
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.pass_names import options_text, parse_passes, pass_classes, passes_text
from fqt_deploy.passes.pipelines import all_passes, prediction_passes, training_passes
from fqt_deploy.passes.select_nested import SelectNested


def test_every_pass_of_the_folder_has_a_name_and_every_name_a_place_in_the_pipelines():
    folder = Path(fqt_deploy.passes.__file__).parent
    files = [path.stem for path in folder.glob("*.py") if '\n    name = "' in path.read_text()]
    assert sorted(name.replace("-", "_") for name in pass_classes()) == sorted(files)
    assert set(pass_classes()) == {each.name for each in all_passes()}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"recipe": "none"}, {"recipe": "psq-8"}, {"agp": "once", "remat": "auto"},
        {"agp": "topk", "grid": "minmax"}, {"include": ("features.*", "a b")},
        {"optimizer": SGD(lr=0.5, momentum=0.9, nesterov=True)},
        {"optimizer": AdamW(betas=(0.8, 0.99), groups=(ParameterGroup("head.*", 0.5), ParameterGroup("[ab]", 1e-05)))},
    ],
)  # fmt: skip
def test_pipelines_read_back(options):
    for passes in (training_passes(CompileOptions(**options)), prediction_passes([])):
        assert parse_passes(passes_text(passes)) == passes


def test_options_are_fields_and_fields_have_their_types():
    assert parse_passes("") == ()
    assert parse_passes(" normalize-views , insert-scq{bits=3 grid=minmax}") == (
        NormalizeViews(), InsertSCQ(bits=3, grid="minmax"),
    )  # fmt: skip
    assert parse_passes("insert-scq{}") == (InsertSCQ(),)
    assert parse_passes("select-nested{bits=2, required=False, exponent=1}") == (SelectNested(2, False, 1.0),)
    assert parse_passes('annotate-layers{exclude=[head* "a b"]}') == (AnnotateLayers(exclude=("head*", "a b")),)
    assert parse_passes("append-optimizer{optimizer=adam{lr=1e-4}}") == (AppendOptimizer(Adam(lr=1e-4)),)
    assert parse_passes("append-optimizer{optimizer=sgd}") == (AppendOptimizer(SGD()),)


WRONG = {
    "insert-sqc": ("FQT206", "column 1: there is no pass 'insert-sqc'", "did you mean 'insert-scq'?"),
    "normalize-views,,": ("FQT209", "column 17: expected the name of a pass, found ','", None),
    "normalize-views insert-scq": ("FQT209", "column 17: expected ',' and another pass, found 'insert-scq'", None),
    "insert-scq{bitz=3}": ("FQT209", "column 12: insert-scq has no 'bitz'", "did you mean 'bits'?"),
    "insert-scq{bits=7}": ("FQT209", "column 17: bits is '7'; it must be one of 1, 2, 3, 4, 8", None),
    "insert-scq{grid=fine}": ("FQT209", "column 17: grid is 'fine'; it must be one of zero, minmax", None),
    "insert-scq{bits=3": ("FQT209", "column 18: expected '}' or an option, found the end", None),
    "insert-scq{bits}": ("FQT209", "column 16: expected '=', found '}'", None),
    "insert-scq{bits=3 bits=4}": ("FQT209", "column 19: bits is given twice", None),
    "select-once{required=maybe}": ("FQT209", "column 22: required is 'maybe'; it must be one of True, False", None),
    "select-nested{exponent=x}": ("FQT209", "column 24: exponent must be a number", None),
    "annotate-layers{include=head}": ("FQT209", "column 25: expected '[' and the values of include", None),
    "append-optimizer{optimizer=muon}": (
        "FQT209",
        "column 28: there is no optimizer 'muon'",
        "there are: adadelta, adafactor, adagrad, adam",
    ),
    "append-optimizer{optimizer=sgd{betas=[1 2]}}": ("FQT209", "column 32: sgd has no 'betas'", None),
    "append-optimizer{optimizer=adam{betas=[0.1]}}": ("FQT209", "column 39: betas has 2 values, 1 are given", None),
    "append-optimizer{optimizer=sgd{lr=-1}}": ("FQT202", "lr is -1.0; it must be a number of at least 0", None),
    "normalize-views\nfold-packing": ("FQT209", "the passes are given in one line", None),
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_are_said_with_their_place(text):
    code, said, hint = WRONG[text]
    with pytest.raises(FqtError) as caught:
        parse_passes(text)
    assert caught.value.code == code
    assert said in caught.value.message
    assert hint is None or hint in caught.value.hint


@pytest.mark.parametrize("name", sorted(pass_classes()))
def test_the_options_of_every_pass_are_shown_with_their_defaults(name):
    kind = pass_classes()[name]
    shown = options_text(kind)
    assert all(f"{field.name}=" in shown for field in dataclasses.fields(kind))
    assert bool(shown) == bool(dataclasses.fields(kind))
    assert parse_passes(name) == (kind(),)
