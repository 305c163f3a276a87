"""Capture of the prediction: the model in evaluation mode as one ATen graph."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, fx, nn

from fqt_deploy.capture.any_names import any_names
from fqt_deploy.capture.check_prediction import refuse_mixed_samples, refuse_moving_state, refuse_random
from fqt_deploy.capture.decompositions import decomposed
from fqt_deploy.capture.eager_run import attributes_restored
from fqt_deploy.capture.export_guard import every_frame_recorded, quiet_export
from fqt_deploy.capture.form_attention import form_attention
from fqt_deploy.capture.label_range import find_labels
from fqt_deploy.capture.model_call import ModelCall, describe_call, predicted
from fqt_deploy.capture.model_state import constant_name, constant_state, model_state
from fqt_deploy.capture.padded_sequences import padded_sequences
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.capture.side_effects import observe_forward
from fqt_deploy.capture.tied_parameters import canonical_names, merge_equal_inputs
from fqt_deploy.capture.traced_graph import data_first, reduce_provenance
from fqt_deploy.capture.tracing import module_mode, plain_ops, trace_error
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph


class _PredictModule(nn.Module):
    """The model alone, so that parameter names equal those of the training capture.

    Attributes:
        chosen: has the name of the output that the latest run returned.
    """

    def __init__(self, model: nn.Module, call: ModelCall, prediction: str | None) -> None:
        super().__init__()
        self.model = model
        self.call = call
        self.prediction = prediction
        self.chosen = SimpleNamespace(name="logits")

    def forward(self, *tensors: Tensor) -> Tensor:
        outputs = self.call.outputs(self.model, tensors)
        self.chosen.name, output = predicted(outputs, self.prediction, "evaluation")
        return output


def capture_prediction_graph(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    call: ModelCall | None = None,
    prediction: str | None = None,
) -> TrainingGraph:
    """Trace ``model`` in evaluation mode; outputs are ``logits`` alone.

    Args:
        model: the user's model.
        example_inputs: the tensors that the model takes; targets behind them are left alone.
        call: what they are to the model; None: one input.
        prediction: the name of the output to return; None: see ``predicted``.

    Raises:
        FqtError: FQT104 if tracing fails, FQT105 for a wrong output, FQT107 if a prediction depends on more than its
            own sample and the state, or changes the state.
    """
    if call is None:
        assert isinstance(example_inputs, Tensor)
        call, example_inputs = describe_call(None, (example_inputs, example_inputs), own_loss=True)
    inputs = tuple(example_inputs)[: call.inputs]
    predict = _PredictModule(model, call, prediction)
    with module_mode(model, training=False), torch.no_grad(), quiet_export(), every_frame_recorded(), any_names():
        refuse_moving_state(observe_forward(predict, inputs, "prediction"))
        with plain_ops():
            graph = _trace(predict, inputs)
            refuse_random(graph)
            several = inputs if call.batch > 1 else tuple(torch.cat([x, x]) for x in inputs)
            batched = graph if several is inputs else _trace_if_it_can(predict, several)
    if batched is not None:
        refuse_mixed_samples(batched, several)
    return graph


def _trace_if_it_can(predict: _PredictModule, inputs: tuple[Tensor, ...]) -> TrainingGraph | None:
    """The graph of a larger batch than the example's; None if the model takes none: then there are no other samples."""
    try:
        return _trace(predict, inputs)
    except FqtError:
        return None


def _trace(predict: _PredictModule, inputs: tuple[Tensor, ...]) -> TrainingGraph:
    model = predict.model
    call = predict.call.resized(int(inputs[0].shape[0]))
    try:
        # what the model calls: of what is exported PyTorch asks no mode
        with attributes_restored(predict), ReplacedFunctions(), padded_sequences():
            program = torch.export.export(predict, inputs, strict=False)
        form_attention(program)
        program = decomposed(program)
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
    names |= {str(given): spec.name for given, spec in zip(signature.user_inputs, call.signature, strict=False)}
    labels = [names[n.name] for n in graph.graph.nodes if n.op == "placeholder"]
    merge_equal_inputs(graph, labels)
    output = next(n for n in graph.graph.nodes if n.op == "output")
    output.args = ((output.args[0][-1],),)
    reduce_provenance(graph)
    module = fx.GraphModule(graph, graph.graph)
    state = model_state(model) | constant_state(constants.values())
    specs = call.signature[: call.inputs]
    captured = data_first(TrainingGraph(module, labels, ["logits"], state, call.batch, signature=specs))
    captured.prediction = predict.chosen.name
    find_labels(captured)  # there are none: an assertion is about something else
    return captured
