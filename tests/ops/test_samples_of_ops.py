"""What definitions say of samples is true: taking some samples of the operands takes those of the result."""

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

import fqt_deploy.ops.registry  # noqa: F401
from fqt_deploy.core.call import call_of, changed
from fqt_deploy.core.graph import propagate
from fqt_deploy.ops.aten.aten_op import aten_ops
from fqt_deploy.ops.op import FQT_OPS
from fqt_deploy.ops.traits import SampleAxis

JOINED = ("batch_norm", "batch_norm_backward")
"""Statistics join the samples; their axis is followed nevertheless."""
CALLS = [
    pytest.param(op, args, kwargs, id=f"{op.target}-{i}")
    for i, (op, args, kwargs) in enumerate(
        [
            *[(op, args, {}) for op in FQT_OPS.values() if op.name not in JOINED for args in op.sample_inputs()],
            *[(op, *call) for op in aten_ops().values() for call in op.samples],
        ]
    )
]


def results_of(result):
    return [each.contiguous() for each in (result if isinstance(result, (tuple, list)) else [result])]


def call_on_placeholders(op, args, kwargs):
    """The node of the call, and the real tensor of each placeholder."""
    graph, mode, real = fx.Graph(), FakeTensorMode(), {}

    def placeholder(value):
        if isinstance(value, (list, tuple)):
            return [placeholder(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        node = graph.placeholder(f"x{len(real)}")
        node.meta["val"] = mode.from_tensor(value.contiguous())
        real[node] = value.contiguous()
        return node

    node = graph.call_function(op.target, tuple(placeholder(a) for a in args), kwargs)
    propagate(node)
    return node, real


def taken(value, where, samples):
    """The first two samples, exchanged: ``where`` has ``outer * samples * inner`` along its axis."""
    split = value.unflatten(where.axis, (where.outer, samples, -1))
    kept = split.index_select(where.axis + 1, torch.tensor([1, 0]))
    return kept.flatten(where.axis, where.axis + 2).contiguous()


@pytest.mark.quick(2, per="op")
@pytest.mark.parametrize(("op", "args", "kwargs"), CALLS)
def test_samples_are_followed(op, args, kwargs):
    node, real = call_on_placeholders(op, args, kwargs)
    wholes = results_of(op.target(*args, **kwargs))
    whole = wholes[0]
    for operand, value in real.items():
        for axis, extent in enumerate(value.shape):
            places = [SampleAxis(axis, outer) for outer in (1, 2, 3) if extent % outer == 0 and extent // outer > 1]
            for where in places:
                samples = extent // where.outer
                aligned = op.traits.batch(call_of(node), {operand: where}.get, samples)
                if aligned is None or aligned.result is None:
                    continue
                assert aligned.operands[operand] == where
                kept = {a: taken(real[a], place, samples) for a, place in aligned.operands.items() if a in real}
                sizes = {}
                if "size" in call_of(node):
                    sizes["size"] = list(taken(whole, aligned.result, samples).shape)
                given, keywords = fx.map_arg(changed(node, sizes), lambda a, kept=kept: kept.get(a, real[a]))
                found = results_of(op.target(*given, **keywords))[: aligned.results]
                expected = [taken(each, aligned.result, samples) for each in wholes[: aligned.results]]
                torch.testing.assert_close(found, expected, equal_nan=True)
