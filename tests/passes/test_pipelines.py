"""Every pass of every pipeline: what it does, as golden text; that it does nothing twice; that exact ones are exact."""

import dataclasses
import difflib
from pathlib import Path

import pytest
import torch

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.verify_passes import PassVerifier
from fqt_deploy.core.dump import graph_text
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.passes.decompose_composites import DecomposeComposites
from fqt_deploy.passes.decompose_variance import DecomposeVariance
from fqt_deploy.passes.fold_packing import FoldPacking
from fqt_deploy.passes.insert_agp import InsertAGP
from fqt_deploy.passes.invariants import ALWAYS
from fqt_deploy.passes.lower_to_1bit import LowerTo1Bit
from fqt_deploy.passes.normalize_layers import NormalizeLayers
from fqt_deploy.passes.normalize_products import NormalizeProducts
from fqt_deploy.passes.normalize_views import NormalizeViews
from fqt_deploy.passes.pass_base import Pass, Pipeline
from fqt_deploy.passes.pipelines import all_passes, training_passes
from fqt_deploy.passes.propagate_layout import PropagateLayout
from fqt_deploy.passes.replace_dropout import ReplaceDropout

EXAMPLES = Path(__file__).parents[2] / "examples"

SHOWN = {
    "normalize-views": ("normed", {}),
    "normalize-products": ("convolutional", {}),
    "normalize-layers": ("convolutional", {}),
    "decompose-variance": ("normed", {}),
    "propagate-layout": ("convolutional", {}),
    "append-optimizer": ("dense", {}),
    "replace-dropout": ("normed", {}),
    "fold-padding": ("padded", {}),
    "order-rows": ("turned", {}),
    "binarize-forward": ("dense", {}),
    "select-once": ("dense", {"agp": "once"}),
    "select-nested": ("staged", {"agp": "nested", "grad_bits": 4}),
    "project-weight-grad": ("batch_normed", {"recipe": "scq"}),
    "insert-scq": ("dense", {"recipe": "scq"}),
    "insert-agp": ("dense", {"agp": "sampled"}),
    "sink-scatter": ("dense", {"agp": "sampled"}),
    "lower-to-1bit": ("convolutional", {"recipe": "scq"}),
    "simplify-signs": ("dense", {"agp": "sampled"}),
    "decompose-composites": ("convolutional", {"agp": "sampled"}),
    "sum-kept-channels": ("dense", {"agp": "sampled"}),
    "fold-packing": ("dense", {"agp": "sampled"}),
    "write-state": ("convolutional", {"agp": "sampled"}),
    "rematerialize": ("convolutional", {"agp": "sampled", "remat": "auto"}),
}
"""Pass -> the model and options whose golden text shows it; the others change no node."""
UNCHANGING = {"check-operators", "annotate-layers"}


def test_every_pass_is_shown():
    assert SHOWN.keys() | UNCHANGING == {p.name for p in all_passes()}


@pytest.fixture(scope="module")
def changes(make_source):
    """``changes(model, options)``: what each pass removes and adds, by pass name."""
    found = {}

    def of(model, options):
        key = model, tuple(sorted(options.items()))
        if key not in found:
            found[key] = _changes(make_source(model), CompileOptions(**options))
        return found[key]

    return of


def _changes(source, options, monkeypatch=pytest.MonkeyPatch):
    texts = []
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "run", _recording(Pipeline.run, texts))
        lower_model(source, options)
    return texts[0]


def _recording(original, into):
    def run(pipeline, graph):
        before = [graph_text(graph)]
        diffs = {}

        def observe(name, now, _seconds):
            lines = before[0].splitlines(), graph_text(now).splitlines()
            difference = difflib.unified_diff(*lines, n=0, lineterm="")
            diffs.setdefault(name, "\n".join(line for line in difference if line[:2] != "@@"))
            before[0] = "\n".join(lines[1])

        into.append(diffs)
        return original(dataclasses.replace(pipeline, observers=(*pipeline.observers, observe)), graph)

    return run


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_pass_does(name, changes, golden):
    model, options = SHOWN[name]
    difference = changes(model, options)[name]
    assert difference, "the pass must fire"
    golden(f"{name}.diff", difference + "\n")


@pytest.mark.parametrize("name", sorted(UNCHANGING))
def test_a_pass_that_only_looks(name, changes):
    assert changes("convolutional", {})[name] == ""


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("convolutional", {"recipe": "none"}),
        ("convolutional", {"remat": "auto"}),
        ("dense", {"agp": "topk", "grid": "minmax"}),
        ("normed", {"recipe": "scq"}),
    ],
)
def test_exact_passes_keep_the_numbers(make_source, model, options):
    checks = lower_model(make_source(model), CompileOptions(verify="numerics", **options)).pass_checks
    assert [check for check in checks if not check.ok] == []
    named = {check.name for check in checks}
    assert {"normalize-products", "lower-to-1bit"} <= named
    assert ("capture" in named) == (model != "normed"), "dropout draws other numbers in eager mode"


def test_a_wrong_pass_is_caught(make_source, monkeypatch):
    def doubled(self, graph):
        import torch

        node = graph.calls(torch.ops.fqt.linear.default)[0]
        with graph.graph.inserting_after(node):
            wrong = graph.graph.call_function(torch.ops.aten.mul.Tensor, (node, 1.01))
        wrong.meta.update(node.meta)
        node.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)
        return True

    monkeypatch.setattr(DecomposeVariance, "run", doubled)
    checks = lower_model(make_source("dense"), CompileOptions(verify="numerics")).pass_checks
    bad = [check for check in checks if not check.ok]
    assert [check.name for check in bad] == ["decompose-variance"]
    assert bad[0].error == pytest.approx(0.01, rel=0.3)


REPEATED = [
    NormalizeViews(), NormalizeProducts(), NormalizeLayers(), DecomposeVariance(), PropagateLayout(), ReplaceDropout(),
    DecomposeComposites(), FoldPacking(),
]  # fmt: skip


@pytest.mark.parametrize("repeated", REPEATED, ids=lambda p: p.name)
@pytest.mark.parametrize("model", ["convolutional", "normed"])
def test_passes_do_not_fire_again(graph_after, model, repeated):
    graph = graph_after(model, repeated.name)
    before = graph_text(graph)
    assert not repeated.run(graph)
    assert graph_text(graph) == before


def test_passes_leave_models_without_binarized_layers_alone(graph_after):
    graph = graph_after("dense", "fold-packing", exclude=("*",))
    before = graph_text(graph)
    assert not LowerTo1Bit().run(graph)
    assert "fqt.sign" not in before
    assert "pack" not in before


def test_one_bit_prunes_nothing(graph_after):
    graph = graph_after("dense", "insert-scq", recipe="scq", grad_bits=1)
    before = graph_text(graph)
    InsertAGP(1).run(graph)
    assert graph_text(graph) == before


def test_pipelines_differ_only_as_the_recipes_do():
    def names(**options):
        return [p.name for p in training_passes(CompileOptions(**options))]

    none, scq, agp = names(recipe="none"), ["project-weight-grad", "insert-scq"], ["insert-agp", "sink-scatter"]
    at = none.index("binarize-forward") + 1
    assert names(recipe="scq") == names(recipe="psq-8") == [*none[:at], *scq, *none[at:]]
    assert names(recipe="scq", projection="off") == [*none[:at], "insert-scq", *none[at:]]
    assert names(agp="sampled") == [*none[:at], *scq, *agp, *none[at:]]
    assert names() == [*none[:at], "select-nested", "select-once", *scq, *agp, *none[at:]]
    assert names(agp="once") == [*none[:at], "select-once", *scq, *none[at:]]
    assert names(agp="nested") == [*none[:at], "select-nested", *scq, *none[at:]]


def test_an_error_says_in_which_pass_it_arose(graph_after):
    @dataclasses.dataclass(frozen=True)
    class Broken(Pass):
        name = "broken"

        def run(self, graph):
            graph.outputs.append("nothing")
            return True

    graph = graph_after("dense")
    with pytest.raises(Exception, match="FQT900") as caught:
        Pipeline((NormalizeViews(), Broken()), ALWAYS).run(graph)
    assert "in pass 'broken', after ['normalize-views']" in caught.value.__notes__[0]
    assert PassVerifier(frozenset(), {}).checks == []


@pytest.mark.parametrize("example", ["vgg16_cifar", "resnet18_cifar", "mlp_mixer", "digits_cnn"])
@pytest.mark.parametrize("agp", ["once", "nested"])
def test_examples_lower_when_backward_keeps_several_samples(example, agp):
    source = load_model(EXAMPLES / f"{example}.py", batch=8)
    graph = lower_model(source, CompileOptions(agp=agp, grad_bits=4)).train
    kept = [node.args[2] for node in graph.calls(torch.ops.fqt.select_sampled.default)]
    expected = {"vgg16_cifar": [6, 3, 2, 1], "resnet18_cifar": [4, 2, 1], "mlp_mixer": [2], "digits_cnn": [3, 1]}
    assert kept == ([2] if agp == "once" else expected[example])
