"""A proof, from the definitions of ops alone, that the logits of a sample depend on no other sample."""

from __future__ import annotations

from torch import fx

from fqt_deploy.core.graph import TrainingGraph


def samples_are_independent(graph: TrainingGraph) -> bool:
    """Whether definitions prove that each sample's logits depend on no other sample; if not, they still may not.

    Every value between the inputs and the logits must have its samples along an axis, as ``sample_axes`` finds it: then
    taking some samples of the inputs takes these samples of the logits, whatever the others are.

    Args:
        graph: a prediction @CAPTURED. Later stages have ops of ours, whose batch normalization joins samples.
    """
    import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
    from fqt_deploy.ops.aten.replaced_layers import REPLACED_LAYERS
    from fqt_deploy.ops.sample_axes import sample_axes
    from fqt_deploy.ops.traits import LEADING

    logits = graph.output("logits")
    found = sample_axes(graph, REPLACED_LAYERS)
    return found.get(logits) == LEADING and _between(graph.batch_inputs(), logits) <= found.keys()


def _between(inputs: list[fx.Node], end: fx.Node) -> set[fx.Node]:
    """The nodes that ``end`` is computed from and that depend on one of ``inputs``, with those and itself."""
    needed, pending = {end}, [end]
    while pending:
        fresh = [node for node in pending.pop().all_input_nodes if node not in needed]
        needed.update(fresh)
        pending += fresh
    dependent = set(inputs)
    for node in end.graph.nodes:
        if any(operand in dependent for operand in node.all_input_nodes):
            dependent.add(node)
    return needed & dependent
