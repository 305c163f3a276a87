"""Capture of the prediction: the model in evaluation mode as one ATen graph."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fqt_deploy.capture.check_prediction import refuse_mixed_samples, refuse_moving_state, refuse_random
from fqt_deploy.capture.decompositions import decompositions
from fqt_deploy.capture.export_guard import every_frame_recorded, quiet_export
from fqt_deploy.capture.form_attention import form_attention
from fqt_deploy.capture.label_range import find_labels
from fqt_deploy.capture.model_state import constant_name, constant_state, model_state
from fqt_deploy.capture.side_effects import observe_forward
from fqt_deploy.capture.tied_parameters import canonical_names, merge_equal_inputs
from fqt_deploy.capture.traced_graph import data_first, reduce_provenance
from fqt_deploy.capture.tracing import module_mode, one_tensor, plain_ops, trace_error
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph


class _PredictModule(nn.Module):
    """The model alone, so that parameter names equal those of the training capture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return one_tensor(self.model(x), "evaluation")


def capture_prediction_graph(model: nn.Module, x: Tensor) -> TrainingGraph:
    """Trace ``model`` in evaluation mode; outputs are ``logits`` alone.

    Raises:
        FqtError: FQT104 if tracing fails, FQT105 for a wrong output, FQT107 if a prediction depends on more than its
            own sample and the state, or changes the state.
    """
    predict = _PredictModule(model)
    with module_mode(model, training=False), torch.no_grad(), quiet_export(), every_frame_recorded():
        refuse_moving_state(observe_forward(predict, (x,), "prediction"))
        with plain_ops():
            graph = _trace(predict, model, x)
            refuse_random(graph)
            several = x if x.shape[0] > 1 else torch.cat([x, x])
            batched = graph if several is x else _trace_if_it_can(predict, model, several)
    if batched is not None:
        refuse_mixed_samples(batched, several)
    return graph


def _trace_if_it_can(predict: nn.Module, model: nn.Module, x: Tensor) -> TrainingGraph | None:
    """The graph of a larger batch than the example's; None if the model takes none: then there are no other samples."""
    try:
        return _trace(predict, model, x)
    except FqtError:
        return None


def _trace(predict: nn.Module, model: nn.Module, x: Tensor) -> TrainingGraph:
    try:
        program = torch.export.export(predict, (x,), strict=False)
        form_attention(program)
        program = program.run_decompositions(decompositions())
    except FqtError:
        raise
    except Exception as error:
        raise trace_error("prediction", error) from error
    signature = program.graph_signature
    aliases = canonical_names(model)
    names = {
        **{k: "param/" + aliases[v.removeprefix("model.")] for k, v in signature.inputs_to_parameters.items()},
        **{k: "buffer/" + v.removeprefix("model.") for k, v in signature.inputs_to_buffers.items()},
    }
    constants = {name: program.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()}
    names |= {name: constant_name(tensor) for name, tensor in constants.items()}
    graph = program.graph_module
    inputs = [names.get(n.name, "x") for n in graph.graph.nodes if n.op == "placeholder"]
    merge_equal_inputs(graph, inputs)
    output = next(n for n in graph.graph.nodes if n.op == "output")
    output.args = ((output.args[0][-1],),)
    reduce_provenance(graph)
    module = fx.GraphModule(graph, graph.graph)
    state = model_state(model) | constant_state(constants.values())
    captured = data_first(TrainingGraph(module, inputs, ["logits"], state, batch=int(x.shape[0])))
    find_labels(captured)  # there are none: an assertion is about something else
    return captured
