"""Verification of kernels and passes: one wrong element is caught, what is zero but for rounding is no alarm."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen.to_relax import to_relax
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.rounding_noise import rounding_noise
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
