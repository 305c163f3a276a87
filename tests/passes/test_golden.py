"""Every pass by itself, from text before to text after: where it fires, where it must not, and what it refuses."""

import pytest
import torch

from fqt_deploy.core.text import graph_text
from fqt_deploy.core.text.filler import filler
from fqt_deploy.passes.pass_names import parse_passes, pass_classes
from tests.passes.golden_case import FOLDER, read_cases

CASES = {(name, case.title): case for name in sorted(pass_classes()) for case in read_cases(name)}
LOOKING_ONLY = {"check-operators", "find-constant-codes", "scale-weights"}
"""Passes that never change a node."""
ALWAYS_FIRING = {"append-optimizer"}
"""Passes that there is no graph to leave as it is for."""


def test_no_file_is_without_its_pass():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(pass_classes())


@pytest.mark.parametrize("name", sorted(pass_classes()))
def test_cases_show_where_a_pass_fires_and_where_it_does_not(name):
    kinds = {case.kind for (of, _), case in CASES.items() if of == name}
    assert "after" in kinds or name in LOOKING_ONLY
    assert "unchanged" in kinds or name in ALWAYS_FIRING


@pytest.mark.parametrize("key", CASES, ids=lambda key: f"{key[0]}: {key[1]}")
def test_a_pass_makes_the_text_after_from_the_text_before(key, request):
    name, title = key
    case = CASES[key]
    assert name in {p.name for p in parse_passes(case.passes)}
    found = case.result()
    if request.config.getoption("--update-golden"):
        path = FOLDER / f"{name}.txt"
        current = {case.title: case for case in read_cases(name)}
        path.write_text("".join(each.text(found if t == title else each.after) for t, each in current.items()))
    else:
        assert found == case.after, f"{name}.txt differs; if it should, pytest --update-golden"
    if case.kind == "after":
        assert found != graph_text(case.graph()), "the pass must fire"
    elif case.kind == "unchanged":
        assert found == "", "the pass must not fire"
    else:
        assert found.startswith("error[FQT"), found


EXACT = [key for key, case in CASES.items() if case.kind == "after" and all(p.exact for p in parse_passes(case.passes))]


@pytest.mark.parametrize("key", EXACT, ids=lambda key: f"{key[0]}: {key[1]}")
def test_exact_passes_keep_the_numbers_of_their_cases(key):
    before, after = (_values(graph) for graph in (CASES[key].graph(), CASES[key].run()))
    common = before.keys() & after.keys()
    assert common
    for name in common:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def _values(graph):
    """The outputs of ``graph`` in eager mode by name, on inputs that are a function of their names and types."""
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    given = []
    for name, node in zip(graph.inputs, nodes, strict=True):
        fake = node.meta["val"]
        role = graph.state[name].role if name in graph.state else "param"
        given.append(filler(name, role, fake.shape, fake.dtype))
    with torch.no_grad():
        outputs = _Contiguous(graph.module).run(*given)
    return dict(zip(graph.outputs, outputs, strict=True))


class _Contiguous(torch.fx.Interpreter):
    """Kernels write contiguous results, whatever PyTorch's strides are."""

    def run_node(self, n):
        return torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, super().run_node(n))
