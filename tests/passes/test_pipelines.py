"""Every pass in its pipeline: that it does nothing twice, that exact ones are exact, and what it leaves alone."""

import dataclasses
from pathlib import Path

import pytest
import torch

from fqt_deploy.capture.load_model import load_model
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.verify_passes import PassVerifier
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.core.text import graph_text
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
from fqt_deploy.passes.pipelines import training_passes
from fqt_deploy.passes.propagate_layout import PropagateLayout
from fqt_deploy.passes.replace_dropout import ReplaceDropout

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.quick(2)
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


@pytest.mark.quick(per="repeated")
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
    _, *before = graph_text(graph).splitlines()
    InsertAGP().run(graph)
    _, *after = graph_text(graph).splitlines()  # behind the header, which says how it was selected
    assert after == before


def test_pipelines_differ_only_as_the_recipes_do():
    def names(**options):
        return [p.name for p in training_passes(CompileOptions(**options))]

    none, scq, agp = names(recipe="none"), ["project-weight-grad", "insert-scq"], ["insert-agp", "sink-scatter"]
    at = none.index("find-constant-codes") + 1
    assert names(recipe="scq") == names(recipe="psq-8") == [*none[:at], *scq, *none[at:]]
    assert names(recipe="scq", projection="off") == [*none[:at], "insert-scq", *none[at:]]
    assert names(agp="sampled") == [*none[:at], *scq, *agp, *none[at:]]
    assert names() == [*none[:at], "select-tokens", "select-nested", "select-once", *scq, *agp, *none[at:]]
    assert names(agp="tokens") == [*none[:at], "select-tokens", *scq, *agp, *none[at:]]
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


def test_a_value_that_is_read_before_it_is_computed_is_one_line(graph_after):
    """PyTorch's message is the whole graph behind its first line."""

    @dataclasses.dataclass(frozen=True)
    class Disordered(Pass):
        name = "disordered"

        def run(self, graph):
            read = next(n for n in graph.graph.nodes if n.op == "call_function" and n.users)
            max(read.users).append(read)
            return True

    with pytest.raises(FqtError, match=r"FQT900: Argument .* was used before it has been defined") as caught:
        Pipeline((Disordered(),), ()).run(graph_after("dense"))
    assert "\n" not in caught.value.message


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("agp", "example"),
    [
        ("once", "digits_cnn"),
        *(("nested", example) for example in ("vgg16_cifar", "resnet18_cifar", "mlp_mixer", "digits_cnn")),
        *(pytest.param("once", n, marks=pytest.mark.slow) for n in ("vgg16_cifar", "resnet18_cifar", "mlp_mixer")),
    ],
)
def test_examples_lower_when_backward_keeps_several_samples(agp, example):
    source = load_model(EXAMPLES / f"{example}.py", batch=8)
    graph = lower_model(source, CompileOptions(agp=agp, grad_bits=4)).train
    kept = [node.args[2] for node in graph.calls(torch.ops.fqt.select_sampled.default)]
    expected = {"vgg16_cifar": [6, 3, 2, 1], "resnet18_cifar": [4, 2, 1], "mlp_mixer": [2], "digits_cnn": [3, 1]}
    assert kept == ([2] if agp == "once" else expected[example])
