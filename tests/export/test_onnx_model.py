"""The exported training step: a valid file, named as promised, with the codes of the compiled step."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tvm
from torch.nn import functional

from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.codegen.kernel_grouping import Kernel, group_kernels
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.compiler.export_onnx import export_onnx
from fqt_deploy.compiler.onnx_kernels import onnx_kernels
from fqt_deploy.core.onnx_names import NEXT
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.export.graph_writer import label_of
from fqt_deploy.export.onnx_model import to_onnx_kernels
from fqt_deploy.ops.lib.onnx_body import CHECK, DOMAIN, KERNELS
from fqt_deploy.runtime.artifact import read_artifact
from tools.examples import EXAMPLES, load_example


def test_state_goes_in_and_out_by_name(exported):
    """State in and state out; a session starts with x and y alone."""
    model, graph = onnx.load(exported.train), exported.lowered.train
    inputs = [i.name for i in model.graph.input]
    assert inputs == ["x", "y", "seed", "lr", *graph.state]
    initial = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name in inputs}
    assert initial.keys() == set(inputs) - {"x", "y"}
    assert initial["seed"] == 7
    for name, state in graph.state.items():
        np.testing.assert_array_equal(initial[name], state.initial.detach().numpy())
    outputs = [o.name for o in model.graph.output]
    assert sorted(outputs) == sorted(["loss", "logits", *(name + NEXT for name in graph.state)])
    assert {"param/features.3.weight", "adam_m/features.3.weight", "step"} <= set(inputs)


def test_nodes_are_named_after_layers(calls):
    """Unique names and metadata for a viewer; one function an op, of standard ops only."""
    model = calls
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("features.3/forward/level_conv2d") for name in names)
    metadata = {entry.key: entry.value for entry in model.graph.node[-1].metadata_props}
    assert metadata["phase"] == "optimizer"
    called = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    assert sorted(called) == sorted(function.name for function in model.functions)
    assert {"level_conv2d", "quantize_pack_samples", "select_sampled", "adam_update"} <= called
    assert {node.domain for function in model.functions for node in function.node} == {""}


def test_kernels_are_named_after_layers(exported):
    """A node for each kernel of the compiled step: its name and metadata are those of the value that it writes."""
    model, kernels = onnx.load(exported.train), onnx_kernels(exported.lowered.train).calls
    check, *nodes = model.graph.node
    assert (check.domain, check.op_type) == (KERNELS, CHECK)
    assert {node.domain for node in nodes} == {KERNELS}
    assert [node.name for node in nodes] == [label_of(call.group.root) for call in kernels]
    assert len({node.name for node in nodes}) == len(nodes) == len(read_artifact(exported.artifact)[0].kernels)
    assert {entry.key for node in nodes for entry in node.metadata_props} == {"layer", "phase", "source"}
    metadata = {entry.key: entry.value for node in nodes for entry in node.metadata_props if "features.3" in node.name}
    assert metadata["layer"] == "features.3"


def test_equal_kernels_share_a_function(exported):
    """A function for each distinct kernel, which calls those of ops: no more of either than are called."""
    model, kernels = onnx.load(exported.train), onnx_kernels(exported.lowered.train).calls
    functions = {function.name: function for function in model.functions if function.domain == KERNELS}
    assert functions.keys() == {node.op_type for node in model.graph.node}
    assert len(functions) - 1 < len(kernels)
    by_symbol = {}
    for call in kernels:
        shapes = (call.positions, [v.shape for v in call.operands], [v.shape for v in call.results])
        assert by_symbol.setdefault((call.group.symbol, repr(shapes)), call.name) == call.name
    assert len(by_symbol) == len(functions) - 1
    called = {node.op_type for f in functions.values() for node in f.node if node.domain == DOMAIN}
    assert called == {function.name for function in model.functions if function.domain == DOMAIN}
    keys = [node for node in model.graph.node if node.op_type.startswith("stream_key")]
    assert len({node.op_type for node in keys}) == 1
    numbers = {tuple(onnx.helper.get_attribute_value(a) for a in node.attribute) for node in keys}
    assert len(numbers) == len(keys) > 1


def test_kernels_compute_the_bits_of_their_calls(exported, digits, calls, values_of):
    """What kernels write has the same bits as where each call is a node; and so the state after the step."""
    feeds = {"x": digits[0][:8].numpy(), "y": digits[1][:8].numpy()}
    kernels = onnx.load(exported.train)
    values, wanted = values_of(kernels, feeds), values_of(calls, feeds)
    written = {info.name for info in (*kernels.graph.value_info, *kernels.graph.output)} - set(checked(kernels))
    assert written >= {value.name for call in onnx_kernels(exported.lowered.train).calls for value in call.results}
    for name in written:
        np.testing.assert_array_equal(values[name], wanted[name], err_msg=name)
    sessions = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (kernels, calls)]
    names = [output.name for output in sessions[0].get_outputs()]
    for name, ours, theirs in zip(names, *(session.run(names, feeds) for session in sessions), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)


def checked(model):
    """Names of what the node returns by which a plug-in refuses a file."""
    return [name for node in model.graph.node if node.op_type == CHECK for name in node.output]


def test_a_view_of_a_result_is_no_node():
    """A kernel returns its result in the shape of the output that it is, whatever shape the kernel writes it in."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(12, 6)

        def forward(self, x):
            return self.linear(x.reshape(2, 12)).reshape(2, 2, 3)

    def loss(logits, y):
        return functional.cross_entropy(logits.reshape(4, 3), y.reshape(4))

    torch.manual_seed(0)
    source = ModelSource(Net(), loss, (torch.randn(2, 3, 4), torch.tensor([[0, 1], [2, 0]])))
    graph = lower_model(source, CompileOptions(recipe="none")).train
    kernels = onnx_kernels(graph)
    model = to_onnx_kernels(graph, "net", {}, kernels, training=True)
    assert {node.domain for node in model.graph.node} == {KERNELS}
    assert kernels.value(graph.results()["logits"]).shape == (2, 2, 3)
    reshaped = [f for f in model.functions if f.domain == KERNELS and any(n.op_type == "Reshape" for n in f.node)]
    assert reshaped


@pytest.mark.parametrize("name", ["train", "infer"])
def test_file_is_valid(exported, name):
    model = onnx.load(getattr(exported, name))
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    typed = {info.name for info in inferred.graph.value_info} | {o.name for o in inferred.graph.output}
    assert {out for node in model.graph.node for out in node.output} <= typed


def test_codes_equal_those_of_the_compiled_kernels(exported, digits, calls, values_of, names_of, assert_close):
    """Each compiled kernel on the values that ONNX Runtime computed: packed bits, codes and sums are equal."""
    images, labels = digits
    feeds = {"x": images[:8].numpy(), "y": labels[:8].numpy()}
    values, graph = values_of(calls, feeds), exported.lowered.train
    names = names_of(graph)
    manifest, _, library = read_artifact(exported.artifact)
    module = tvm.runtime.load_module(str(library))
    kernels = [step for step in group_kernels(graph) if isinstance(step, Kernel)]
    exact = set()
    for info, kernel in zip(manifest.kernels, kernels, strict=True):
        found = names[kernel.root]
        wanted = [values[name] for name in (found if isinstance(found, list) else [found])]
        operands = [tvm.runtime.tensor(np.array(values[names[leaf]], order="C")) for leaf in kernel.leaves]
        operands += [tvm.runtime.tensor(np.array(number, "int32")) for number in kernel.numbers().values()]
        results = [tvm.runtime.empty(w.shape, w.dtype.name) for w in wanted]
        module.get_function(info.symbol, query_imports=True)(*operands, *results)
        floor = max(
            (float(np.linalg.norm(values[names[leaf]].astype(np.float64))) for leaf in kernel.leaves), default=0
        )
        for result, value in zip(results, wanted, strict=True):
            assert_close(result.numpy(), value, f"{info.op} of {info.layer}", floor=floor)
            if value.dtype.kind != "f":
                exact.add(info.op)
    assert {
        "pack_levels", "pack_weight", "level_conv2d", "select_sampled", "quantize_pack_samples",
        "quantize_pack_channels", "bitplane_conv2d_input_grad", "level_weight_grad", "tap_sums", "level_sums",
    } <= exact  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    "settings",
    [
        {"agp": "once", "activation_bits": 1, "activation_grid": "sign"},
        pytest.param({"agp": "topk", "grid": "minmax"}, marks=pytest.mark.slow),
        pytest.param({"recipe": "psq-1"}, marks=pytest.mark.slow),
        pytest.param({"recipe": "psq-8"}, marks=pytest.mark.slow),
        pytest.param({"recipe": "none"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_recipe_exports(
    digits_source, digits, tmp_path, values_of, calls_of, check_every_node, check_every_kernel, settings
):
    """A valid file whose every kernel, and every call in it, agrees with its reference."""
    options = CompileOptions(**settings)
    lowered = lower_model(digits_source, options)
    export_onnx(digits_source, options, lowered, tmp_path / "m.onnx")
    feeds = {"x": digits[0][:8].numpy(), "y": digits[1][:8].numpy()}
    check_every_node(lowered.train, values_of(calls_of(lowered, options), feeds))
    check_every_kernel(lowered.train, values_of(onnx.load(tmp_path / "m.onnx"), feeds))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "resnet18", "mixer"])
def test_examples_train_in_stock_onnx_runtime(name, tmp_path, values_of, check_every_kernel):
    """A valid file, every kernel agrees with its reference, and the loss of one batch falls over eight steps."""
    source = load_example(name, batch=4)
    assert name in EXAMPLES
    options = CompileOptions()
    lowered = lower_model(source, options)
    path = tmp_path / "m.onnx"
    export_onnx(source, options, lowered, path)
    x, y = (t.numpy() for t in source.example_inputs)
    check_every_kernel(lowered.train, values_of(onnx.load(path), {"x": x, "y": y}))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    state, losses = {}, []
    for _ in range(8):
        results = dict(zip(outputs, session.run(outputs, {"x": x, "y": y, **state}), strict=True))
        losses.append(float(results["loss"]))
        state = {n.removesuffix(NEXT): value for n, value in results.items() if n.endswith(NEXT)}
    assert state["step"] == 8
    assert np.isfinite(losses).all()
    assert np.mean(losses[-2:]) < losses[0]
