"""Capture of a whole training step: forward, loss and backward as one ATen graph.

The only file that touches PyTorch's private AOTAutograd interface. ``torch.export`` gives a functional module with
provenance, ``aot_export_joint_with_descriptors`` differentiates it and names every input and output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors

from fqt_deploy.capture.any_names import any_names
from fqt_deploy.capture.check_model import check_model, untrained_parameters
from fqt_deploy.capture.cumulative_average import cumulative_averages
from fqt_deploy.capture.custom_functions import custom_functions, functions_as_ops, refuse_functions_in_place
from fqt_deploy.capture.decompositions import decompositions
from fqt_deploy.capture.eager_run import attributes_restored
from fqt_deploy.capture.export_guard import every_frame_recorded, quiet_export
from fqt_deploy.capture.form_attention import form_attention
from fqt_deploy.capture.label_range import find_labels
from fqt_deploy.capture.model_call import ModelCall, describe_call, predicted
from fqt_deploy.capture.model_state import constant_name, constant_state, model_state
from fqt_deploy.capture.padded_sequences import padded_sequences
from fqt_deploy.capture.replaced_functions import ReplacedFunctions
from fqt_deploy.capture.side_effects import Effects, moving, observe_forward, refuse_lost
from fqt_deploy.capture.tied_parameters import canonical_names, merge_equal_inputs, sum_tied_gradients
from fqt_deploy.capture.traced_graph import data_first, reduce_provenance
from fqt_deploy.capture.tracing import module_mode, plain_ops, trace_error
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import TrainingGraph

aten = torch.ops.aten

LossFunction = Callable[[Any, Any], Any]
"""A function ``(outputs, targets) -> scalar loss``."""


class _StepModule(nn.Module):
    """Model and loss as one module from the tensors of a batch to ``(loss, outputs)``.

    Attributes:
        assigned: names of the buffers that forward assigns to; they are written once, at its end.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, call: ModelCall, prediction: str | None) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.call = call
        self.prediction = prediction
        self.assigned: frozenset[str] = frozenset()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with moving(self, self.assigned):
            loss, outputs = self.call.loss_and_outputs(self.model, self.loss_fn, tensors)
            _, output = predicted(outputs, self.prediction, "training")
        if not isinstance(loss, Tensor):
            raise FqtError(f"the loss is of type {type(loss).__name__}; it must be a scalar tensor", code="FQT105")
        if loss.dim() or loss.dtype != torch.float32:
            dtype = str(loss.dtype).removeprefix("torch.")
            raise FqtError(
                f"the loss is {dtype} of shape {list(loss.shape)}; it must be a float32 scalar",
                code="FQT105",
                hint="reduce it with .mean()",
            )
        return loss, output.detach()


@dataclass(frozen=True)
class ObservedStep:
    """A training step whose forward pass has been run eagerly.

    Attributes:
        module: model and loss.
        effects: what its forward changes.
        example: the tensors of a batch.
    """

    module: _StepModule
    effects: Effects
    example: tuple[Tensor, ...]


def capture_training_graph(
    model: nn.Module,
    loss_fn: LossFunction,
    example_inputs: tuple[Tensor, ...],
    call: ModelCall | None = None,
    prediction: str | None = None,
) -> TrainingGraph:
    """Trace forward, loss and backward of ``model`` on ``example_inputs``.

    Args:
        model: the user's model; it is put into training mode for the trace and back afterwards. Parts of it that are in
            evaluation mode stay in it, see ``module_mode``.
        loss_fn: ``(outputs, targets) -> scalar loss``.
        example_inputs: the tensors of a batch; their shapes and dtypes become those of the compiled step.
        call: what they are to model and loss; None: one input and one target.
        prediction: the name of the output that is returned beside the loss; None: see ``predicted``.

    Returns:
        A graph with the inputs of the call, ``param/...`` and ``buffer/...``, and outputs ``loss, logits, buffer
        updates, grad/...``.

    Raises:
        FqtError: FQT101 for parameters that are not float32, FQT104 if tracing fails, FQT105 for a wrong output or
            loss, FQT106 if no parameter gets a gradient.
    """
    return trace_training_step(observe_training_step(model, loss_fn, example_inputs, call, prediction))


def observe_training_step(
    model: nn.Module,
    loss_fn: LossFunction,
    example_inputs: tuple[Tensor, ...],
    call: ModelCall | None = None,
    prediction: str | None = None,
) -> ObservedStep:
    """The first half of ``capture_training_graph``: check the model, and run its forward pass eagerly."""
    check_model(model, loss_fn)
    if call is None:
        call, example_inputs = describe_call(None, example_inputs, own_loss=True)
    step = _StepModule(model, loss_fn, call, prediction)
    with module_mode(model, training=True), torch.enable_grad(), quiet_export(), refuse_functions_in_place():
        effects = observe_forward(step, example_inputs, "training")
    step.assigned = effects.assigned
    return ObservedStep(step, effects, example_inputs)


def trace_training_step(observed: ObservedStep) -> TrainingGraph:
    """The second half of ``capture_training_graph``: trace what was observed."""
    step, example_inputs = observed.module, observed.example
    model, call = step.model, step.call
    with contextlib.ExitStack() as stack:
        for context in (
            module_mode(model, training=True), torch.enable_grad(), attributes_restored(step), quiet_export(),
            every_frame_recorded(), any_names(), custom_functions(), plain_ops(), ReplacedFunctions(),
            padded_sequences(), cumulative_averages(),
        ):  # fmt: skip
            stack.enter_context(context)
        with functions_as_ops():
            module, constants = _export(step, example_inputs)
        try:
            joint = aot_export_joint_with_descriptors(stack, module, example_inputs, decompositions=decompositions())
            traced = joint.graph_module
        except Exception as error:
            raise trace_error("training", error) from error
    graph = _training_graph(model, traced, constants, call)
    moved = {"model." + n.removeprefix("buffer/") for n in graph.outputs if n.startswith("buffer/")}
    refuse_lost(step, observed.effects, moved)
    find_labels(graph, {spec.name: tensor for spec, tensor in zip(call.signature, example_inputs, strict=True)})
    return graph


def _export(step: nn.Module, args: tuple[Tensor, ...]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The functional module, and the tensors in it that are no state of ``step.model``, by name in the module."""
    try:
        program = torch.export.export(step, args, strict=False)
        form_attention(program)
        module = program.module(check_guards=False)
    except FqtError:
        raise
    except Exception as error:
        raise trace_error("training", error) from error
    names = program.graph_signature.lifted_tensor_constants
    constants = {name: program.constants[name] for name in names}
    for name, tensor in constants.items():  # AOTAutograd takes buffers as inputs, and refuses other tensors
        owner = module.get_submodule(name.rpartition(".")[0])
        delattr(owner, name.rpartition(".")[2])
        owner.register_buffer(name.rpartition(".")[2], tensor, persistent=False)
    _interpret_parts(module)
    return module, constants | {n: t for n, t in step.named_buffers() if not n.startswith("model.")}


def _interpret_parts(module: nn.Module) -> None:
    """Let what stands under ``torch.no_grad``, a graph of its own, run node by node, as the graph around it does.

    Called as a function, its nodes would be traced without their lines and layers.
    """
    for part in module.modules():
        if isinstance(part, fx.GraphModule) and part is not module:
            part.forward = fx.Interpreter(part).run


def _training_graph(
    model: nn.Module, traced: fx.GraphModule, constants: Mapping[str, Tensor], call: ModelCall
) -> TrainingGraph:
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    aliases = canonical_names(model)
    inputs: list[str] = []
    for node in placeholders:
        described = node.meta["desc"]
        kind = type(described).__name__
        if kind == "TangentAOTInput":
            _replace_tangent(traced, node)
            continue
        if kind == "ForwardTokenAOTInput":
            raise _checks_values(node)
        if kind == "PlainAOTInput":
            inputs.append(call.signature[described.idx].name)
        elif described.target in constants:
            inputs.append(constant_name(constants[described.target]))
        elif kind == "ParamAOTInput":
            inputs.append("param/" + aliases[described.target.removeprefix("model.")])
        else:
            inputs.append("buffer/" + described.target.removeprefix("model."))
    output = next(n for n in traced.graph.nodes if n.op == "output")
    names, nodes = _named_outputs(output, call)
    notes = untrained_parameters(model, names, aliases)
    merge_equal_inputs(traced, inputs)
    sum_tied_gradients(traced, output, names, nodes, aliases)
    output.args = (tuple(nodes),)
    reduce_provenance(traced)
    state = model_state(model) | constant_state(constants.values())
    module = fx.GraphModule(traced, traced.graph)
    graph = TrainingGraph(module, inputs, names, state, call.batch, signature=call.signature, notes=notes)
    return data_first(graph)


def _checks_values(token: fx.Node) -> FqtError:
    """FQT104 for the first of the operators that ``token`` keeps in order: they raise errors that values decide on."""
    ordered = next(iter(token.users), token)
    checked = next((a for a in ordered.args if isinstance(a, torch._ops.OpOverload)), ordered.target)
    return FqtError(
        f"an operator checks values while it runs ({checked}), which a compiled step does not do",
        code="FQT104",
        node=ordered,
        hint="write it without matrix inverses, decompositions and solvers of torch.linalg",
    )


def _replace_tangent(traced: fx.GraphModule, node: fx.Node) -> None:
    """The loss is the only differentiated output: its incoming gradient is the constant one."""
    with traced.graph.inserting_after(node):
        one = traced.graph.call_function(aten.full.default, ([], 1.0))
    one.meta.update(node.meta)
    node.replace_all_uses_with(one)
    traced.graph.erase_node(node)


def _refuse_changed_argument(changed: Any, node: fx.Node, call: ModelCall) -> None:
    """FQT104 if what a forward pass changes in place is a parameter or an input: of the state, buffers may move."""
    kind = type(changed).__name__
    if kind == "PlainAOTInput":
        raise FqtError(
            f"forward or loss changes its input {call.signature[changed.idx].name} in place",
            code="FQT104",
            node=node,
            hint="write x = x * 2 in place of x *= 2",
        )
    if kind == "ParamAOTInput":
        raise FqtError(
            f"forward changes the parameter {changed.target.removeprefix('model.')}, which only the optimizer may",
            code="FQT104",
            node=node,
            hint="compute with a changed value, such as self.weight.clamp(-1, 1), and leave the parameter",
        )


def _named_outputs(output: fx.Node, call: ModelCall) -> tuple[list[str], list[fx.Node]]:
    names: list[str] = []
    nodes: list[fx.Node] = []
    flat = output.args[0]
    assert isinstance(flat, (list, tuple))
    for node, described in zip(flat, output.meta["desc"], strict=True):
        if node is None or described is None:
            continue
        kind = type(described).__name__
        if kind == "PlainAOTOutput":
            names.append(("loss", "logits")[described.idx])
        elif kind == "InputMutationAOTOutput":
            _refuse_changed_argument(described.mutated_input, node, call)
            names.append("buffer/" + described.mutated_input.target.removeprefix("model."))
        else:
            names.append("grad/" + described.grad_of.target.removeprefix("model."))
        nodes.append(node)
    order = sorted(range(len(names)), key=lambda i: {"loss": 0, "logits": 1}.get(names[i], 2))
    return [names[i] for i in order], [nodes[i] for i in order]
