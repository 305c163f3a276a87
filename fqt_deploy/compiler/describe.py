"""Description of what was compiled: the manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from fqt_deploy import __version__
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.compiler.buckets import describe_buckets, shared_state
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.graph import ActivationGrid, LayerRecord, StateTensor, TrainingGraph, grids_of
from fqt_deploy.core.layer_bits import ACTIVATION_BITS
from fqt_deploy.core.manifest import KernelInfo, LayerDecision, Manifest, OptimizerInfo, StateSpec, TensorSpec
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.ops.lib import moment_code
from fqt_deploy.passes.optimizer_updates import has_coded_moments

if TYPE_CHECKING:
    from fqt_deploy.codegen.to_relax import RelaxProgram
    from fqt_deploy.targets.base import Target

_GRIDS = "activation_grids"
"""The entry of the manifest's options: bits, whether signed, and spacing of each grid, by the name of the weight."""


def describe(
    source: ModelSource,
    options: CompileOptions,
    graphs: Sequence[tuple[TrainingGraph, TrainingGraph]],
    program: RelaxProgram,
    target: Target,
) -> Manifest:
    """The manifest of a compiled model, with the lowered step and prediction for every shape of batches."""
    names = {
        "name": target.name,
        "arch": target.toolchain.arch,
        "mcpu": str(target.features.mcpu),
        "requires": " ".join(target.features.requires),
        **target.variant(),
    }
    train, predict = graphs[0]
    manifest = describe_model(source, options, train, predict, target=names, kernels=program.kernels)
    if len(graphs) == 1:
        return manifest
    state = shared_state([train for train, _ in graphs]).values()
    return replace(manifest, state=tuple(map(_state_spec, state)), buckets=describe_buckets(graphs))


def describe_model(
    source: ModelSource,
    options: CompileOptions,
    train: TrainingGraph,
    predict: TrainingGraph,
    *,
    target: Mapping[str, str],
    kernels: tuple[KernelInfo, ...] = (),
) -> Manifest:
    """The manifest of a model in whatever format: what it takes, keeps and is identified by.

    Args:
        source: the model.
        options: how it is compiled.
        train: the lowered training step.
        predict: the lowered evaluation graph.
        target: what the format is for.
        kernels: the kernels of the step, where there are any.
    """
    inputs = train.signature
    logits = _spec("logits", predict.output("logits").meta["val"])
    state = tuple(map(_state_spec, train.state.values()))
    optimizer = options.optimizer.describe()
    layers, labels = layer_decisions(train), train.labels
    numerics = {**options.numerics(), "agp": train.selection}
    if train.selection == "tokens":
        numerics["grad_bits"] = options.token_bits
    identity = [
        [asdict(spec) for spec in (*(TensorSpec(i.name, i.shape, i.dtype) for i in inputs), logits, *state)],
        # what 1-bit layers are known by is what it was before there were others
        [
            [
                r.path,
                r.decision,
                *([r.activation_bits] if record.grid else []),
                *([{"weight_bits": r.weight_bits}] if r.weight_bits > 1 else []),
            ]
            for r, record in zip(layers, train.layers, strict=True)
        ],
        numerics,
        optimizer["name"],
        optimizer["hyperparameters"],
        [group["pattern"] for group in optimizer["groups"]],
        *([{"moment_code": moment_code.FORMAT}] if has_coded_moments(train) else []),
    ]
    grids = {weight: [grid.bits, grid.signed, grid.spacing] for weight, grid in grids_of(train.layers).items()}
    return Manifest(
        name=source.name,
        target=dict(target),
        versions={
            "fqt-deploy": __version__,
            **{package: importlib.metadata.version(package) for package in ("torch", "apache-tvm", "apache-tvm-ffi")},
        },
        inputs=inputs,
        logits=logits,
        classes=_classes(train, logits),
        state=state,
        predict_state=tuple(name for name in predict.inputs if name in predict.state),
        module_names=_module_names(source.module, {t.name for t in state}),
        layers=layers,
        kernels=kernels,
        options={**numerics, **({_GRIDS: grids} if grids else {})},
        optimizer=OptimizerInfo(optimizer["name"], optimizer["hyperparameters"], tuple(optimizer["groups"])),
        seed=options.seed,
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        class_axis=labels.class_axis if labels is not None else None,
        prediction=predict.prediction,
    )


def recorded_grids(manifest: Manifest) -> dict[str, ActivationGrid]:
    """The grids of activations by the name of their layer's weight; none where all layers compute on signs.

    Raises:
        FqtError: FQT513 for an artifact with activations of several bits that is older than this record, FQT502 for a
            record that is damaged.
    """
    recorded = manifest.options.get(_GRIDS, {})
    if not recorded and (several := [layer.path for layer in manifest.layers if layer.activation_bits > 1]):
        raise FqtError(
            f"layer {several[0]!r} takes activations of several bits, whose grid the artifact does not hold",
            code="FQT513",
            hint="compile it again with the installed version",
        )
    try:
        grids = {weight: ActivationGrid(*values) for weight, values in recorded.items()}
        sound = all(g.bits in ACTIVATION_BITS and 0 < g.spacing < float("inf") for g in grids.values())
    except (AttributeError, TypeError):
        sound = False
    if not sound:
        raise FqtError(f"{_GRIDS} in the options of manifest.json is damaged", code="FQT502")
    return grids


def _module_names(module: nn.Module, state: set[str]) -> dict[str, str]:
    """The names of the state by the names in ``module.state_dict()``."""
    tensors = {id(p): f"param/{n}" for n, p in reversed([*module.named_parameters()])}
    tensors |= {id(b): f"buffer/{n}" for n, b in reversed([*module.named_buffers()])}
    named = {name: tensors.get(id(tensor)) for name, tensor in module.state_dict(keep_vars=True).items()}
    return {name: found for name, found in named.items() if found in state}


def layer_decisions(graph: TrainingGraph) -> tuple[LayerDecision, ...]:
    """The decision about each layer, in forward order."""
    return tuple(_decision(record) for record in graph.layers)


def _decision(record: LayerRecord) -> LayerDecision:
    decided, reason = "1-bit" if record.binarized else "fp32", record.reason
    if record.weight_bits > 1:
        reason = f"{reason}; weights of {record.weight_bits} bits"
    if record.grid is None:
        return LayerDecision(record.path, record.kind, decided, reason, record.source, weight_bits=record.weight_bits)
    kind = "both signs" if record.grid.signed else "no sign"
    if record.grid.bits == 1:
        reason = f"{reason}; activations are 0 or {record.grid.spacing:.3g}"
    else:
        reason = f"{reason}; activations of {record.grid.bits} bits, {kind}, {record.grid.spacing:.3g} apart"
    return LayerDecision(record.path, record.kind, decided, reason, record.source, record.grid.bits, record.weight_bits)


def _classes(train: TrainingGraph, logits: TensorSpec) -> int | None:
    """Number of classes, when labels index an axis of the logits."""
    axis = train.labels.class_axis if train.labels is not None else None
    return None if axis is None else logits.shape[axis]


def _state_spec(tensor: StateTensor) -> StateSpec:
    return StateSpec(tensor.name, tuple(tensor.initial.shape), _dtype(tensor.initial), tensor.role)


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tuple(int(d) for d in tensor.shape), _dtype(tensor))


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
