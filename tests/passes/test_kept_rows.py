"""Where values have tokens: only what an op computes row by row is followed, whatever the extents are."""

import pytest

from fqt_deploy.core.graph import shape
from fqt_deploy.core.text import parse_graph
from fqt_deploy.passes.kept_rows import SampleRows, TokenRows, rows_of

GRAPH = """graph stage=lowered batch=2
input %x = x : f32[2, 4, 4]
input %y = y : f32[2, 4, 4]
input %bias = bias : f32[4]
input %token = token : f32[2, 4, 1]
input %sample = sample : f32[2, 1, 4]
input %place = place : f32[4, 4]
input %weight = weight : i32[1, 1, 16]
%both = aten.add.Tensor(%x, %y)
%shifted = aten.add.Tensor(%x, %bias)
%normed = aten.mul.Tensor(%x, %token)
%scaled = aten.mul.Tensor(%x, %sample)
%placed = aten.add.Tensor(%x, %place)
%turned = aten.permute(%x, [0, 2, 1])
%flat = aten.view(%x, [8, 4])
%image = aten.view(%x, [1, 1, 8, 4])
%windows = aten.view(%x, [4, 2, 4])
%bits = fqt.pack_signs(%image)
%product = fqt.binary_conv2d(%bits, %weight, 4, 16, [1, 1], [1, 1], [0, 0])
%wide = fqt.binary_conv2d(%bits, %weight, 4, 16, [1, 1], [1, 1], [0, 1])
%total = aten.sum.dim_IntList(%x, [2])
output total = %total
"""
FOLLOWED = {
    "both": {"x", "y"},
    "shifted": {"x"},
    "normed": {"x", "token"},
    "scaled": None,
    "placed": None,
    "turned": None,
    "flat": {"x"},
    "image": {"x"},
    "windows": None,
    "bits": {"image"},
    "product": {"bits"},
    "wide": None,
    "total": None,
}


@pytest.fixture(scope="module")
def nodes():
    return {node.name: node for node in parse_graph(GRAPH).graph.nodes}


@pytest.mark.parametrize("name", FOLLOWED)
def test_tokens_are_followed_through_what_computes_each_by_itself(name, nodes):
    operands = TokenRows(2, 8).operands(nodes[name])
    assert (operands and {node.name for node in operands}) == FOLLOWED[name]


@pytest.mark.parametrize(
    ("name", "kept"), [("x", [2, 3, 4]), ("flat", [6, 4]), ("image", [1, 1, 6, 4]), ("token", [2, 3, 1])]
)
def test_kept_tokens_stand_where_all_stood(name, kept, nodes):
    assert TokenRows(2, 8).extents(nodes[name], 6) == kept
    assert shape(nodes[name])[-1] == kept[-1]


def test_as_many_rows_as_samples_are_samples():
    graph = parse_graph(GRAPH)
    assert isinstance(rows_of(graph, 2), SampleRows)
    assert rows_of(graph, 8) == TokenRows(2, 8)
    assert (rows_of(graph, 2).note(1), rows_of(graph, 8).note(6)) == ({"samples": 1}, {"kept": 3})
