"""Laws of the partition into kernels, on real steps: computed once, in order, read before it is overwritten."""

import functools
import operator
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fqt_deploy.capture.load_model import ModelSource, load_model
from fqt_deploy.codegen.inlining_cost import textual_reads
from fqt_deploy.codegen.kernel_function import kernel_function, kernel_key
from fqt_deploy.codegen.kernel_grouping import (
    MAXIMUM_TEXT,
    Kernel,
    View,
    group_kernels,
    kind_of,
    storage_of,
)
from fqt_deploy.codegen.to_relax import destinations
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.aten.pointwise import Pointwise
from fqt_deploy.ops.op import OPS, Kind
from fqt_deploy.settings import options_of

EXAMPLES = Path(__file__).parents[2] / "examples"
CLONE = torch.ops.aten.clone.default


class Chain(nn.Module):
    """Expressions that are read often, by expressions that are read often: their text would grow exponentially."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(x) * torch.sigmoid(x) + torch.erf(0.5 * x)
        for _ in range(12):
            x = x * (x + 1)
        x = torch.exp(torch.tanh(x))[:, :, None].expand(-1, -1, 5).mean(-1)
        return self.last(functional.gelu(functional.gelu(torch.log1p(x))))


def pools():
    """Windows that overlap, padded and large, behind an activation of many operations."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 1, 2), nn.Softplus(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(8, 13, 2), nn.LeakyReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(13, 4),
    )  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer, whose steps a trace unrolls."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.body(x)[0].mean(1))


@functools.cache
def lowered_digits(recipe):
    return lower_model(load_model(EXAMPLES / "digits_cnn.py", batch=4), CompileOptions(recipe=recipe))


@pytest.fixture(
    scope="module",
    params=["none", pytest.param("scq", marks=pytest.mark.thorough), "scq+agp", "predict", "chain", "pools"],
)
def graph(request):
    if request.param == "pools":
        source = ModelSource(pools(), functional.cross_entropy, (torch.randn(2, 3, 14, 18), torch.tensor([0, 2])))
        return lower_model(source, CompileOptions()).train
    if request.param == "chain":
        source = ModelSource(Chain(), functional.cross_entropy, (torch.randn(2, 4), torch.tensor([0, 2])))
        return lower_model(source, CompileOptions(recipe="none")).train
    recipe = "none" if request.param == "predict" else request.param
    lowered = lowered_digits(recipe)
    return lowered.predict if request.param == "predict" else lowered.train


@pytest.fixture(scope="module")
def steps(graph):
    return group_kernels(graph)


def writes(step):
    return step.root if isinstance(step, Kernel) else step.node


def reads(step):
    return step.leaves if isinstance(step, Kernel) else (step.source,)


def through_items(node):
    return node.args[0] if node.target is operator.getitem else node


def test_operands_exist_before_they_are_read(graph, steps):
    present = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for step in steps:
        for leaf in reads(step):
            assert through_items(leaf) in present, leaf
        present.add(writes(step))
    values = zip(graph.outputs, graph.output_node().args[0], strict=True)
    results = [node for name, node in values if name not in graph.state]
    assert results
    assert all(through_items(node) in present for node in results)


def test_every_value_is_written_once(steps):
    written = [writes(step) for step in steps]
    assert len(written) == len(set(written))


def test_only_element_wise_ops_are_inlined(steps):
    kernels = [step for step in steps if isinstance(step, Kernel)]
    assert all(kind_of(member) is Kind.ELEMENTWISE for kernel in kernels for member in kernel.members)
    products = [kernel for kernel in kernels if kind_of(kernel.root) is Kind.PRODUCT]
    assert products
    assert not any(kernel.members for kernel in products)
    assert any(kernel.members for kernel in kernels)


def test_members_come_after_what_they_read(steps):
    for kernel in (step for step in steps if isinstance(step, Kernel)):
        known = set(kernel.leaves)
        for node in (*kernel.members, kernel.root):
            assert all(operand in known for operand in node.all_input_nodes)
            known.add(node)


def test_state_is_not_read_after_it_is_written(graph, steps):
    overwritten: set = set()
    written = destinations(graph)
    for step in steps:
        own = {storage_of(node) for node in written.get(writes(step), [])}
        assert not ({storage_of(node) for node in reads(step)} - own) & overwritten
        overwritten |= own
    expected = {graph.placeholder(name) for name in graph.outputs if name in graph.state}
    assert overwritten == expected


def test_copies_into_state_come_last(steps):
    copies = [isinstance(step, Kernel) and step.root.target is CLONE for step in steps]
    assert copies == sorted(copies)


def test_the_text_of_a_kernel_is_bounded(steps):
    for kernel in (step for step in steps if isinstance(step, Kernel)):
        text = kernel_function(kernel).script()
        assert len(re.findall(r"leaf\d+\[", text)) <= 1.1 * MAXIMUM_TEXT  # roots read in more than one stage


def test_positions_of_windows_that_overlap_are_computed_once(steps):
    for kernel in (step for step in steps if isinstance(step, Kernel)):
        if kernel.root.target is torch.ops.fqt.max_pool2d_backward.default:
            windows, step = kernel.root.args[3:5]
            inlined = kernel.root.args[1] in kernel.members
            assert inlined == (windows == step), kernel.root


def test_reads_are_counted_right(steps):
    for kernel in (step for step in steps if isinstance(step, Kernel) and not step.members):
        op = OPS[kernel.root.target]
        if issubclass(op, Pointwise):
            text = kernel_function(kernel).script()
            for number, leaf in enumerate(kernel.leaves):
                expected = sum(textual_reads(kernel.root, i) for i, a in enumerate(kernel.root.args) if a is leaf)
                assert len(re.findall(rf"leaf{number}\[", text)) == expected + 1, kernel.root  # and once to declare it


def test_views_share_the_number_of_elements(steps):
    for view in (step for step in steps if isinstance(step, View)):
        assert view.node.meta["val"].numel() == view.source.meta["val"].numel()


def test_equal_keys_give_equal_functions(steps):
    import tvm

    by_key: dict = {}
    compared = 0
    for kernel in (step for step in steps if isinstance(step, Kernel) and len(step.members) < 4):
        function = kernel_function(kernel)
        assert len(function.params) >= len(kernel.leaves) + 1
        assert int(function.attrs["fqt.outputs"]) == len(function.params) - len(kernel.leaves) - len(kernel.numbers())
        first = by_key.setdefault(kernel_key(kernel), function)
        if first is not function:
            tvm.ir.assert_structural_equal(first, function)
            compared += 1
    assert len(by_key) > 10
    assert compared or len(by_key) == len([s for s in steps if isinstance(s, Kernel) and len(s.members) < 4])


def test_calls_that_differ_in_a_number_share_their_kernel(steps):
    """One kernel computes the keys of all random streams: it reads the numbers that tell them apart."""
    keys = [s for s in steps if isinstance(s, Kernel) and s.root.target is torch.ops.fqt.stream_key.default]
    assert len({tuple(kernel.numbers().items()) for kernel in keys}) == len(keys)
    assert len({kernel_key(kernel) for kernel in keys}) == min(1, len(keys))
    assert len({kernel_function(kernel).script() for kernel in keys}) == min(1, len(keys))
    alone = [s for s in steps if isinstance(s, Kernel) and s.root.target is torch.ops.fqt.nan_number.default]
    shapes = {kernel.leaves[0].meta["val"].shape for kernel in alone if not kernel.members}
    assert len({kernel_key(kernel) for kernel in alone if not kernel.members}) == len(shapes)


@pytest.mark.thorough
def test_steps_of_a_loop_share_their_kernels():
    """More steps are more slices of the sequences, which are copied, and no other kernels but sums over all steps."""
    others, slices = {}, {}
    for length in (5, 7):
        batch = (torch.randn(4, length, 6), torch.arange(4) % 3)
        source = ModelSource(Recurrent(), functional.cross_entropy, batch)
        graph = lower_model(source, CompileOptions(recipe="none", exclude=("*",))).train
        kernels = [step for step in group_kernels(graph) if isinstance(step, Kernel)]
        sliced = [kernel for kernel in kernels if kernel.root.target is torch.ops.aten.slice.Tensor]
        assert sum(not kernel.members for kernel in sliced) >= 2 * length
        slices[length] = {kernel_key(kernel) for kernel in sliced}
        others[length] = {kernel_key(kernel) for kernel in kernels} - slices[length]
    assert len(slices[7]) - len(slices[5]) == 4  # of the gates' sequence and of its gradient
    assert len(others[7]) - len(others[5]) <= 1


def test_adafactor_writes_no_square_of_a_gradient():
    """Three sums read the squares, which would be as large as the parameter, while backward still keeps its values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 10))
    source = ModelSource(model, functional.cross_entropy, (torch.randn(8, 64), torch.arange(8)))
    graph = lower_model(source, options_of({"optimizer": "adafactor", "recipe": "none"})).train
    kernels = [step for step in group_kernels(graph) if isinstance(step, Kernel)]
    of_optimizer = [kernel.root for kernel in kernels if kernel.root.meta.get("phase") == "optimizer"]
    large = [node for node in of_optimizer if node.meta["val"].numel() == 64 * 96]
    assert [kind_of(node) for node in large] == [Kind.UPDATE]
