"""Capture of a whole training step: forward, loss and backward as one ATen graph.

The only file that touches PyTorch's private AOTAutograd interface. ``torch.export`` gives a functional module with
provenance, ``aot_export_joint_with_descriptors`` differentiates it and names every input and output.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._functorch.aot_autograd import aot_export_joint_with_descriptors
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from fqt_deploy.capture.check_model import check_model, require_gradients
from fqt_deploy.capture.export_guard import quiet_export, refuse_custom_functions
from fqt_deploy.core.diagnostics import FqtError, SourceLocation
from fqt_deploy.core.graph import StateTensor, TrainingGraph

aten = torch.ops.aten

_DECOMPOSE = (
    aten._log_softmax, aten._log_softmax_backward_data, aten._softmax, aten._softmax_backward_data,
    aten.native_layer_norm, aten.native_layer_norm_backward, aten.threshold_backward,
    aten.nll_loss_forward, aten.nll_loss_backward, aten.t, aten.transpose, aten.rsub, aten._unsafe_view,
    aten.tanh_backward, aten.sigmoid_backward, aten.silu, aten.silu_backward, aten.var_mean, aten.hardtanh,
    aten.hardtanh_backward, aten.hardswish, aten.hardswish_backward, aten.leaky_relu, aten.leaky_relu_backward,
    aten.elu, aten.elu_backward, aten.mse_loss, aten.mse_loss_backward, aten.native_dropout_backward,
    aten._adaptive_avg_pool2d_backward, aten.binary_cross_entropy_with_logits, aten.smooth_l1_loss,
    aten.smooth_l1_loss_backward, aten.slice_backward, aten.select_backward, aten.stack, aten.unbind,
    aten._native_batch_norm_legit,
)  # fmt: skip
"""Compound ops that PyTorch itself knows how to spell in simpler ones."""

_KEEP = (
    aten.convolution, aten.convolution_backward, aten._native_batch_norm_legit_functional,
    aten.native_batch_norm_backward, aten._native_batch_norm_legit_no_training, aten.max_pool2d_with_indices,
    aten.max_pool2d_with_indices_backward, aten.avg_pool2d, aten.avg_pool2d_backward, aten._adaptive_avg_pool2d,
    aten.mm, aten.addmm, aten.bmm, aten.native_dropout, aten.embedding, aten.embedding_dense_backward, aten.relu,
    aten.gelu, aten.gelu_backward, aten.mean, aten.var, aten.squeeze, aten.unsqueeze, aten.expand, aten.sum,
    aten.bernoulli,
)  # fmt: skip
"""Ops that this compiler has a better lowering for than their decomposition."""


def _any_along(x: Tensor, axis: int, keepdim: bool = False) -> Tensor:
    return (x if x.dtype == torch.bool else x != 0).float().amax(axis, keepdim) > 0


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, channels: int, _: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized over each sample's groups of channels, with mean and inverse deviation [n, groups]."""
    grouped = x.reshape(n, groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    centred = grouped - mean
    inverse = torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)
    y = (centred * inverse).view(x.shape)
    each = [1, channels, *[1] * (x.dim() - 2)]
    y = y if weight is None else y * weight.view(each)
    return y if bias is None else y + bias.view(each), mean.view(n, groups), inverse.view(n, groups)


def _split(x: Tensor, sizes: list[int], axis: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [aten.slice(x, axis, start, start + size) for start, size in zip(starts, sizes, strict=True)]


_OWN: dict[Any, Callable[..., Any]] = {
    aten.any.dim: _any_along,
    aten.native_group_norm.default: _group_norm,
    aten.split_with_sizes.default: _split,
}
"""Ops that PyTorch spells in what has no lowering."""


def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = {**core_aten_decompositions(), **get_decompositions(_DECOMPOSE)}
    kept = {getattr(packet, overload) for packet in _KEEP for overload in packet.overloads()}  # type: ignore[no-untyped-call]
    return {op: rule for op, rule in table.items() if op not in kept} | _OWN


@contextlib.contextmanager
def _plain_ops() -> Iterator[None]:
    """Within this context PyTorch spells attention and recurrent layers in plain ops, not as calls of fused kernels."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


class _StepModule(nn.Module):
    """Model and loss as one module that returns ``(loss, outputs)``."""

    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = _one_tensor(self.model(x), "training")
        loss = self.loss_fn(outputs, y)
        if not isinstance(loss, Tensor):
            raise FqtError(f"the loss is of type {type(loss).__name__}; it must be a scalar tensor", code="FQT105")
        if loss.dim() or loss.dtype != torch.float32:
            dtype = str(loss.dtype).removeprefix("torch.")
            raise FqtError(
                f"the loss is {dtype} of shape {list(loss.shape)}; it must be a float32 scalar",
                code="FQT105",
                hint="reduce it with .mean()",
            )
        return loss, outputs.detach()


class _PredictModule(nn.Module):
    """The model alone, so that parameter names equal those of the training capture."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return _one_tensor(self.model(x), "evaluation")


def _one_tensor(outputs: object, mode: str) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    kind = type(outputs).__name__
    raise FqtError(
        f"the model returns a {kind} in {mode} mode; it must return one tensor",
        code="FQT105",
        hint="wrap it in a module whose forward returns the logits alone",
    )


def capture_training_graph(
    model: nn.Module, loss_fn: Callable[[Any, Tensor], Tensor], example_inputs: tuple[Tensor, Tensor]
) -> TrainingGraph:
    """Trace forward, loss and backward of ``model`` on ``example_inputs``.

    Args:
        model: the user's model; it is put into training mode for the trace and back afterwards.
        loss_fn: ``(outputs, targets) -> scalar loss``.
        example_inputs: ``(x, y)``; their shapes and dtypes become those of the compiled step.

    Returns:
        A graph with inputs ``x, y, param/..., buffer/...`` and outputs ``loss, logits, buffer updates, grad/...``.

    Raises:
        FqtError: FQT101 for parameters that are not float32, FQT104 if tracing fails, FQT105 for a wrong output or
            loss, FQT106 if a trainable parameter gets no gradient.
    """
    check_model(model, loss_fn)
    step = _StepModule(model, loss_fn)
    with _mode(step, training=True), torch.enable_grad(), quiet_export(), _plain_ops():
        with refuse_custom_functions():
            module, constants = _export(step, example_inputs, "training")
        try:
            with contextlib.ExitStack() as stack:
                joint = aot_export_joint_with_descriptors(
                    stack, module, example_inputs, decompositions=_decompositions()
                )
                traced = joint.graph_module
        except Exception as error:
            raise _trace_error("training", error) from error
    return _training_graph(model, traced, constants, batch=int(example_inputs[0].shape[0]))


def capture_prediction_graph(model: nn.Module, x: Tensor) -> TrainingGraph:
    """Trace ``model`` in evaluation mode; outputs are ``logits`` alone.

    Raises:
        FqtError: FQT104 if tracing fails, FQT105 for a wrong output.
    """
    predict = _PredictModule(model)
    with _mode(predict, training=False), torch.no_grad(), quiet_export(), _plain_ops():
        try:
            program = torch.export.export(predict, (x,), strict=False).run_decompositions(_decompositions())
        except FqtError:
            raise
        except Exception as error:
            raise _trace_error("prediction", error) from error
    signature = program.graph_signature
    aliases = _canonical_names(model)
    names = {
        **{k: "param/" + aliases[v.removeprefix("model.")] for k, v in signature.inputs_to_parameters.items()},
        **{k: "buffer/" + v.removeprefix("model.") for k, v in signature.inputs_to_buffers.items()},
    }
    constants = {name: program.constants[key] for name, key in signature.inputs_to_lifted_tensor_constants.items()}
    names |= {name: _constant_name(tensor) for name, tensor in constants.items()}
    graph = program.graph_module
    placeholders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    inputs = [names.get(n.name, "x") for n in placeholders]
    for position in reversed(range(len(inputs))):
        first = inputs.index(inputs[position])
        if first != position:  # the same tied parameter
            placeholders[position].replace_all_uses_with(placeholders[first])
            graph.graph.erase_node(placeholders[position])
            del inputs[position]
    output = next(n for n in graph.graph.nodes if n.op == "output")
    output.args = ((output.args[0][-1],),)
    _annotate(graph)
    module = fx.GraphModule(graph, graph.graph)
    state = _state(model) | _constant_state(constants.values())
    return _data_first(TrainingGraph(module, inputs, ["logits"], state, batch=int(x.shape[0])))


def _constant_name(tensor: Tensor) -> str:
    """A tensor that belongs to no module is state that nothing updates, named by its content: equal ones are one."""
    content = tensor.detach().contiguous().numpy().tobytes() + f"{tensor.dtype}{list(tensor.shape)}".encode()
    return f"buffer/constant_{hashlib.sha256(content).hexdigest()[:12]}"


def _constant_state(constants: Iterable[Tensor]) -> dict[str, StateTensor]:
    tensors = [(_constant_name(tensor), tensor) for tensor in constants]
    return {name: StateTensor(name, "buffer", tensor.detach()) for name, tensor in tensors}


@contextlib.contextmanager
def _mode(module: nn.Module, *, training: bool) -> Any:
    before = {m: m.training for m in module.modules()}
    if training:
        module.train()
    else:
        module.eval()
    try:
        yield
    finally:
        for m, was in before.items():
            m.training = was


def _export(step: nn.Module, args: tuple[Tensor, ...], what: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The functional module, and the tensors in it that are no state of ``step.model``, by name in the module."""
    try:
        program = torch.export.export(step, args, strict=False)
        module = program.module(check_guards=False)
    except FqtError:
        raise
    except Exception as error:
        raise _trace_error(what, error) from error
    names = program.graph_signature.lifted_tensor_constants
    constants = {name: program.constants[name] for name in names}
    for name, tensor in constants.items():  # AOTAutograd takes buffers as inputs, and refuses other tensors
        owner = module.get_submodule(name.rpartition(".")[0])
        delattr(owner, name.rpartition(".")[2])
        owner.register_buffer(name.rpartition(".")[2], tensor, persistent=False)
    return module, constants | {n: t for n, t in step.named_buffers() if not n.startswith("model.")}


def _trace_error(what: str, error: Exception) -> FqtError:
    cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    told = FqtError(
        f"cannot trace the {what} step: {type(error).__name__}: {cause}",
        code="FQT104",
        hint="the model must be traceable by torch.export: no data-dependent control flow, no Python side effects",
    )
    told.location = SourceLocation.of_error(error)
    return told


def _state(model: nn.Module) -> dict[str, StateTensor]:
    state = {f"param/{n}": StateTensor(f"param/{n}", "param", p.detach()) for n, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        state[f"buffer/{name}"] = StateTensor(f"buffer/{name}", "buffer", buffer.detach())
    return state


def _training_graph(
    model: nn.Module, traced: fx.GraphModule, constants: Mapping[str, Tensor], batch: int
) -> TrainingGraph:
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    aliases = _canonical_names(model)
    inputs: list[str] = []
    for node in placeholders:
        described = node.meta["desc"]
        kind = type(described).__name__
        if kind == "TangentAOTInput":
            _replace_tangent(traced, node)
            continue
        if kind == "PlainAOTInput":
            inputs.append("xy"[described.idx])
        elif described.target in constants:
            inputs.append(_constant_name(constants[described.target]))
        else:
            prefix = "param/" if kind == "ParamAOTInput" else "buffer/"
            inputs.append(prefix + described.target.removeprefix("model."))
    output = next(n for n in traced.graph.nodes if n.op == "output")
    names, nodes = _named_outputs(output)
    require_gradients(model, names, aliases)
    _merge_tied(traced, output, inputs, names, nodes, aliases)
    output.args = (tuple(nodes),)
    _annotate(traced)
    state = _state(model) | _constant_state(constants.values())
    return _data_first(TrainingGraph(fx.GraphModule(traced, traced.graph), inputs, names, state, batch))


def _data_first(graph: TrainingGraph) -> TrainingGraph:
    """Put ``x`` and ``y`` before the state, and the state in the order of its inputs."""
    nodes = [n for n in graph.graph.nodes if n.op == "placeholder"]
    by_name = dict(zip(graph.inputs, nodes, strict=True))
    graph.inputs = sorted(graph.inputs, key=lambda name: ("x", "y", name).index(name))
    for name in reversed(graph.inputs):
        next(iter(graph.graph.nodes)).prepend(by_name[name])
    graph.state = {name: graph.state[name] for name in graph.inputs if name in graph.state}
    graph.graph.set_codegen(fx.graph.CodeGen())  # one argument an input; PyTorch's own nests them
    graph.module.recompile()
    return graph


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """Every parameter path, duplicates of tied ones included, to the path its tensor is stored under."""
    first = {id(p): name for name, p in model.named_parameters()}
    return {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}


def _replace_tangent(traced: fx.GraphModule, node: fx.Node) -> None:
    """The loss is the only differentiated output: its incoming gradient is the constant one."""
    with traced.graph.inserting_after(node):
        one = traced.graph.call_function(aten.full.default, ([], 1.0))
    one.meta.update(node.meta)
    node.replace_all_uses_with(one)
    traced.graph.erase_node(node)


def _named_outputs(output: fx.Node) -> tuple[list[str], list[fx.Node]]:
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
            names.append("buffer/" + described.mutated_input.target.removeprefix("model."))
        else:
            names.append("grad/" + described.grad_of.target.removeprefix("model."))
        nodes.append(node)
    order = sorted(range(len(names)), key=lambda i: {"loss": 0, "logits": 1}.get(names[i], 2))
    return [names[i] for i in order], [nodes[i] for i in order]


def _merge_tied(
    traced: fx.GraphModule,
    output: fx.Node,
    inputs: list[str],
    names: list[str],
    nodes: list[fx.Node],
    aliases: Mapping[str, str],
) -> None:
    """Tied parameters are traced as separate inputs: read one, and sum their gradients."""
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    first: dict[str, fx.Node] = {}
    for position, (name, node) in reversed(list(enumerate(zip(list(inputs), placeholders, strict=True)))):
        canonical = "param/" + aliases[name.removeprefix("param/")] if name.startswith("param/") else name
        if canonical != name:
            node.replace_all_uses_with(first.setdefault(canonical, placeholders[inputs.index(canonical)]))
            traced.graph.erase_node(node)
            del inputs[position]
    for position in reversed(range(len(names))):
        name = names[position]
        canonical = "grad/" + aliases[name.removeprefix("grad/")] if name.startswith("grad/") else name
        if canonical != name and canonical not in names:
            names[position] = canonical  # PyTorch has summed them already
        elif canonical != name:
            target = names.index(canonical)
            with traced.graph.inserting_before(output):
                total = traced.graph.call_function(aten.add.Tensor, (nodes[target], nodes[position]))
            total.meta.update(nodes[target].meta)
            nodes[target] = total
            del names[position], nodes[position]


def _annotate(module: fx.GraphModule) -> None:
    """Reduce PyTorch's provenance to ``layer`` and ``phase``, and put all values under one fake mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for node in module.graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        module.graph.erase_node(node)  # says what the fake tensors say

    def refake(tensor: Tensor) -> Tensor:
        with mode:
            return torch.empty(tensor.shape, dtype=tensor.dtype)

    for node in module.graph.nodes:
        stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
        path = str(list(stack.values())[-1][0]) if stack else ""
        node.meta["layer"] = path.removeprefix("model").removeprefix(".")
        node.meta["phase"] = "backward" if node.meta.get("partitioner_tag") == "is_backward" else "forward"
        if "val" in node.meta:
            node.meta["val"] = torch.utils._pytree.tree_map_only(Tensor, refake, node.meta["val"])
