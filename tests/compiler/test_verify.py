"""Verification of kernels and passes: one wrong element is caught, what is zero but for rounding is no alarm."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen.to_relax import to_relax
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.rounding_noise import bits_at_edges, rounding_noise, unsure_elements
from fqt_deploy.compiler.verify import kernel_cases
from fqt_deploy.core.options import CompileOptions


@pytest.fixture(scope="module")
def cases():
    """The kernels of a step whose bias gradients are zero but for rounding: batch normalization removes them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(288, 33), nn.BatchNorm1d(33),
        nn.Tanh(), nn.Linear(33, 4),
    )  # fmt: skip
    source = ModelSource(model, nn.functional.cross_entropy, (torch.randn(5, 3, 8, 8), torch.arange(5) % 4))
    options = CompileOptions(recipe="none", exclude=("*",))
    lowered = lower_model(source, options)
    program = to_relax(lowered.train, lowered.predict)
    return [case for _, case in kernel_cases(lowered.train, program, source.example_inputs, options)]


def arrays(case):
    return [np.array(expected.numpy(), order="C") for expected in case.expected]


def test_right_results_pass(cases):
    assert all(case.compare(arrays(case)).ok for case in cases)


def is_noise(case, position):
    """Whether a result is zero but for rounding, and so has no right digit."""
    return case.noise()[position] > 1e-3 * float(case.expected[position].double().norm())


def test_one_wrong_element_of_any_kernel_is_caught(cases):
    """An element that is off by a fiftieth of the largest one, in each result of each kernel."""
    caught, missed = 0, []
    for case in cases:
        for position, expected in enumerate(case.expected):
            if not expected.dtype.is_floating_point or not expected.any() or is_noise(case, position):
                continue
            results = arrays(case)
            results[position].flat[expected.numel() // 2] += 0.02 * float(expected.abs().max())
            caught += not case.compare(results).ok
            missed += [case.info.op] if case.compare(results).ok else []
    assert missed == []
    assert caught > 60


def test_noise_is_no_alarm_where_all_is_noise(cases):
    """The bias of a layer behind batch normalization has the gradient zero: no order of summation is the right one."""
    noisy = [(case, i) for case in cases for i in range(len(case.expected)) if is_noise(case, i)]
    assert noisy
    for case, position in noisy:
        results = arrays(case)
        results[position] = -results[position]
        assert case.compare(results).ok, case.info


def graph_of(function, *operands):
    graph = torch.fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(len(operands))]
    root = function(graph, *nodes)
    return root, dict(zip(nodes, operands, strict=True))


def test_noise_is_what_cancels():
    aten = torch.ops.aten
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))

    def difference(graph, a, b):
        return graph.call_function(aten.sub.Tensor, (graph.call_function(aten.sum.default, (a,)), b))

    root, known = graph_of(difference, x, x.sum())
    (noise,) = rounding_noise(root, known)
    assert 1e-7 * float(x.norm()) < noise < 1e-5 * float(x.norm())
    root, known = graph_of(lambda graph, a: graph.call_function(aten.mul.Tensor, (a, 2.0)), x)
    (noise,) = rounding_noise(root, known)
    assert noise < 1e-6 * float(x.norm())


def test_a_case_explains_an_error_by_noise_only_if_it_is_that_large(cases):
    case = next(c for c in cases if c.expected[0].dtype == torch.float32 and c.expected[0].numel() > 100)
    silent = dataclasses.replace(case, noise=lambda: [0.0] * len(case.expected))
    loud = dataclasses.replace(case, noise=lambda: [1e9] * len(case.expected))
    results = arrays(case)
    results[0].flat[7] += 0.5 * float(case.expected[0].norm())
    assert (silent.compare(results).ok, case.compare(results).ok, loud.compare(results).ok) == (False, False, True)


def test_a_code_may_be_another_where_a_computed_number_lies_at_an_edge(cases):
    """Here levels are 1 apart, and a kernel computes the GELU whose level it packs."""
    aten, fqt = torch.ops.aten, torch.ops.fqt
    x = torch.linspace(0.1, 6.0, 64)
    edge = 9
    for _ in range(60):  # the operand whose GELU is 2.5, where level 3 begins
        y = aten.gelu(x)
        x[edge] -= (y[edge] - 2.5) / 1.1

    def packed(graph, a):
        return graph.call_function(
            fqt.pack_levels.default, (graph.call_function(aten.gelu.default, (a,)), 1.0, 4, False)
        )

    root, known = graph_of(packed, x)
    (bits,) = bits_at_edges(root, known)
    assert bits.sum() == 1 << edge, "level 2 is 0b10, level 3 0b11: they differ in plane 0"
    assert (bits != 0).sum() == 1
    root, known = graph_of(
        lambda graph, a: graph.call_function(fqt.pack_levels.default, (a, 1.0, 4, False)), aten.gelu(x)
    )
    (bits,) = bits_at_edges(root, known)
    assert not bits.any(), "what is given is exact"

    expected = torch.zeros(4, dtype=torch.int32)
    case = dataclasses.replace(
        cases[0], expected=(expected,), edges=lambda: [np.array([0, 6, 0, 0], dtype=np.int32)], noise=lambda: [0.0]
    )
    for value, ok in (([0, 0, 0, 0], True), ([0, 2, 0, 0], True), ([0, 1, 0, 0], False), ([0, 2, 4, 0], False)):
        assert case.compare([np.array(value, dtype=np.int32)]).ok == ok


def test_the_place_of_a_maximum_is_unsure_where_values_are_equal_but_for_rounding():
    aten = torch.ops.aten
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).abs()
    x[:20, 3] = x[:20, 5] = x[:20].amax(1) + 1
    root, known = graph_of(lambda graph, a: graph.call_function(aten.argmax.default, (a, 1)), x)
    (unsure,) = unsure_elements(root, known)
    assert unsure[:20].all(), "each of two is the larger one in some of the runs"
    assert not unsure[20:].any()
