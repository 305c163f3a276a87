"""Sessions, which train and evaluate an artifact."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.core.manifest import Manifest, TensorSpec, Variant
from fqt_deploy.core.manifest_laws import LARGEST_RATE
from fqt_deploy.runtime.arrays import as_numpy, check_layout, check_no_nan, check_values, empty_aligned
from fqt_deploy.runtime.artifact import LIBRARY, Build, write_artifact
from fqt_deploy.runtime.bind_batch import bind_batch
from fqt_deploy.runtime.calls import Turn, enter_process
from fqt_deploy.runtime.checkpoint import load_checkpoint, save_checkpoint
from fqt_deploy.runtime.choose_variant import variant_of, variants_for_samples
from fqt_deploy.runtime.cuda_library import CudaLibrary, is_on_gpu
from fqt_deploy.runtime.exchange import Exchange
from fqt_deploy.runtime.group import Group, rank_seed
from fqt_deploy.runtime.library import Library

Array = NDArray[Any]
_Method = TypeVar("_Method", bound=Callable[..., Any])


class StepFunctions(Protocol):
    """The functions that compute a session's steps: a compiled library, or another runtime."""

    path: Path

    @property
    def build(self) -> Build | None:
        """The artifact's compiled members; None if there are none."""

    def place(self, array: Array) -> Any:
        """Returns an operand of the step with the values of ``array``."""

    def fetch(self, operand: Any) -> Array:
        """Returns a copy of the operand's value."""

    def assign(self, operand: Any, value: Any) -> None:
        """Overwrite the operand with ``value``."""

    def batch(self, spec: TensorSpec, value: Any) -> Any:
        """Returns an input of the step, checked against ``spec``."""

    def train_step(self, *operands: Any, variant: int = 0) -> tuple[float, Any]:
        """Loss and logits of one step on ``*batch, seed, lr, *state``; the state is changed in place."""

    def predict(self, *operands: Any, variant: int = 0) -> Array:
        """Returns the logits of ``*model_inputs, *predict_state``."""


def _alone(method: _Method) -> _Method:
    """The method, refused with FQT512 while another thread is in one of the same session."""

    @functools.wraps(method)
    def guarded(self: Session, *arguments: Any, **options: Any) -> Any:
        with self._turn:
            return method(self, *arguments, **options)

    return cast("_Method", guarded)


class Session:
    """A compiled model with its state; not for use by several threads at once, which is refused with FQT512.

    Args:
        manifest: what the library takes.
        library: the compiled functions.
        state: all arrays by name; the session changes them in place where they are aligned and the device is the CPU.
    """

    def __init__(self, manifest: Manifest, library: StepFunctions, state: Mapping[str, Array]) -> None:
        self.manifest = manifest
        self._variants = manifest.variants
        self._turn = Turn()
        self._library = library
        self._state = {spec.name: library.place(state[spec.name]) for spec in manifest.state}
        self._group: Group | None = None
        self._exchange: Exchange | None = None
        self._seed = library.place(np.zeros((), "int64"))
        self.seed = manifest.seed
        self._lr = library.place(np.zeros(len(manifest.optimizer.groups), "float32"))
        self.lr = [group["lr"] for group in manifest.optimizer.groups]
        self._last_logits: Any = None
        self._averaged = False

    @_alone
    def step(self, *batch: Any, check: bool = False, **named: Any) -> float:
        """Train on one batch and return its loss; if an input is refused, nothing has changed.

        ``step(x, y)``, ``step((image, metadata), y)``, ``step(input_ids=..., attention_mask=..., labels=...)`` and
        ``step({"input_ids": ..., ...})`` are the same to it: what has a name goes by it, the rest in order.

        Args:
            *batch: the arrays of ``manifest.inputs``: NumPy arrays or CPU tensors, in tuples, lists and dicts or not.
                A step on a GPU also takes a tensor there, without a copy and without a check of its values.
            check: raise if the loss is not finite; by then the state has been updated. Without it such a loss is
                returned, as PyTorch returns it.
            **named: arrays by name.

        Raises:
            FqtError: FQT505 for a missing or unknown array and for another shape or type, FQT506 for NaN or infinity,
                FQT507 for a label or index out of range, FQT511 for the loss, with the layer in whose signs NaN was
                met, FQT512 in a forked process or while another thread is in a call.
        """
        enter_process()
        values = bind_batch(self.manifest.inputs, batch, named)
        variant = variant_of(self._variants, values)
        operands = [self._library.batch(spec, value) for spec, value in zip(variant.inputs, values, strict=True)]
        state = [self._state[name] for name in variant.state]
        if self._exchange is not None and self._group is not None:
            self._exchange.begin(rank_seed(self.seed, self._group.rank), self.step_count)
        value, logits = self._library.train_step(*operands, self._seed, self._lr, *state, variant=variant.number)
        self._check_logits(logits, variant.logits)
        self._last_logits = logits
        if self._group is not None:
            value = self._group.mean_loss(value)
        if check and not math.isfinite(value):
            layer = _layer_with_nan(value, self.manifest)
            met = f": NaN was met in {layer}, whose signs cannot hold it" if layer else ""
            raise FqtError(
                f"the loss is {value} in step {self.step_count}{met}",
                code="FQT511",
                hint="lower the learning rate, and go on from an older checkpoint",
            )
        return float(value)

    @_alone
    def predict(self, *inputs: Any, **named: Any) -> Array:
        """Logits of any number of samples, evaluated in batches of the compiled size.

        Args:
            *inputs: the arrays of ``manifest.model_inputs`` as ``step`` takes them, but for the first extent. A tensor
                on the GPU must be one whole batch.
            **named: arrays by name; targets among them are left alone.

        Raises:
            FqtError: FQT505 for a missing or unknown array and for another shape or type, FQT506 for NaN or infinity,
                FQT507 for an index out of range, FQT512 as for ``step``.
        """
        enter_process()
        values = bind_batch(self.manifest.model_inputs, inputs, named, ignored=self.manifest.targets)
        if any(map(is_on_gpu, values)) and isinstance(self._library, CudaLibrary):
            (only,) = self._variants
            operands = map(self._library.batch, only.model_inputs, values)
            return self._library.predict(*operands, *map(self._evaluated, only.predict_state))
        arrays = [as_numpy(spec.name, value) for spec, value in zip(self.manifest.model_inputs, values, strict=True)]
        samples = arrays[0].shape[0] if arrays[0].ndim else 0
        variants = variants_for_samples(self._variants, arrays)
        for spec, array in zip(variants[0].model_inputs, arrays, strict=True):
            check_layout(dataclasses.replace(spec, shape=(samples, *spec.shape[1:])), array)
            check_values(spec, array)
        return self._predicted(arrays, samples, variants)

    def _predicted(self, arrays: list[Array], samples: int, variants: Sequence[Variant]) -> Array:
        """Logits of checked arrays of ``samples`` samples; the last batch is filled up with its last sample.

        Args:
            arrays: the model's inputs.
            samples: how many there are.
            variants: those that take such samples, the largest batch first.
        """
        logits = variants[0].logits
        rows = logits.shape[0] // variants[0].batch  # more than one where a sample is a sequence
        result = np.empty((samples * rows, *logits.shape[1:]), dtype=logits.dtype)
        start = 0
        while start < samples:
            variant = [variants[0], *(v for v in variants if v.batch >= samples - start)][-1]
            specs = variant.model_inputs
            try:
                padded = [empty_aligned(spec.shape, spec.dtype) for spec in specs]
            except MemoryError as error:
                raise FqtError(f"a batch of {specs[0].name} needs too much memory: {error}", code="FQT406") from None
            count = min(variant.batch, samples - start)
            for own, array in zip(padded, arrays, strict=True):
                own[:count] = array[start : start + count]
                own[count:] = own[count - 1]
            operands = [self._library.batch(spec, own) for spec, own in zip(specs, padded, strict=True)]
            state = map(self._evaluated, variant.predict_state)
            part = self._library.predict(*operands, *state, variant=variant.number)
            self._check_logits(part, variant.logits)
            result[start * rows : (start + count) * rows] = part[: count * rows]
            start += count
        return result

    def _check_logits(self, logits: Any, spec: TensorSpec) -> None:
        """FQT502 unless the library computes what the manifest says."""
        if tuple(logits.shape) != spec.shape or str(logits.dtype) != spec.dtype:
            raise FqtError(
                f"{self._library.path} computes {logits.dtype}{list(logits.shape)} as logits; the manifest says "
                f"{spec.dtype}{list(spec.shape)}",
                code="FQT502",
                hint="compile the model again",
            )

    @property
    def group(self) -> Group | None:
        """The processes that the session trains with; None alone."""
        return self._group

    @_alone
    def join(self, group: Group) -> None:
        """Train with other processes from now on: every step takes the mean of all gradients.

        State, step count, seed and learning rates become those of process 0. Each process draws selections and rounding
        of its own. ``step`` returns the mean of the losses.

        Raises:
            FqtError: FQT601 if the step was not compiled for several processes, FQT602 if the processes have different
                steps, FQT603 if one of them has ended.
        """
        wire = self.manifest.options.get("distributed", "off")
        if wire == "off" or not isinstance(self._library, Library):
            raise FqtError(
                f"{self.manifest.name} was compiled to train in one process, and {group.size} are training together",
                code="FQT601",
                hint="compile it again with --distributed fp32, or distributed='fp32' in Python",
            )
        kernels = [kernel.symbol for kernel in self.manifest.kernels]
        group.check_same("the compiled step", json.dumps([self.manifest.fingerprint, self.manifest.target, kernels]))
        state = self._fetched()
        group.share_state(state)
        for name, array in state.items():
            self._library.assign(self._state[name], array)
        seed, rates = json.loads(group.share_text(json.dumps([self.seed, self._rates])))
        self._group = group
        self.seed, self.lr = seed, rates
        self._exchange = self._library.exchange = group.exchange(wire, self._library)

    @_alone
    def synchronize(self) -> None:
        """Make the state of all processes one, as a checkpoint keeps it: buffers become their means.

        Raises:
            FqtError: FQT602 if parameters or optimizer state have come to differ.
        """
        if self._group is None:
            return
        state = self._fetched()
        roles = {spec.name: spec.role for spec in self.manifest.state}
        own = {name: array for name, array in state.items() if roles[name] not in ("buffer", "metric")}
        digest = hashlib.sha256()
        for name, array in own.items():
            digest.update(f"{name} {array.shape}".encode() + array.tobytes())
        self._group.check_same(f"the state after step {self.step_count}", digest.hexdigest())
        buffers = {name: array for name, array in state.items() if roles[name] == "buffer" and array.dtype.kind == "f"}
        self._group.average(buffers)
        for name, array in buffers.items():
            self._library.assign(self._state[name], array)

    @property
    def last_logits(self) -> Array | None:
        """Logits of the batch of the latest ``step``; None before the first."""
        return None if self._last_logits is None else self._library.fetch(self._last_logits)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers of the latest step that the step was compiled to keep (``--metrics``), by name."""
        kept = [spec.name for spec in self.manifest.state if spec.role == "metric"]
        return {name.partition("/")[2]: float(self._library.fetch(self._state[name])) for name in kept}

    @property
    def averaged(self) -> bool:
        """Whether ``predict`` and ``state_dict`` take the averages of the parameters (``--ema``) in their place.

        Raises:
            FqtError: FQT513 when it is set and the step keeps no averages.
        """
        return self._averaged

    @averaged.setter
    def averaged(self, value: bool) -> None:
        if value and not any(name.startswith("ema/") for name in self._state):
            raise FqtError("the step keeps no averages", code="FQT513", hint="compile it with ema=0.999")
        self._averaged = bool(value)

    def _evaluated(self, name: str) -> Any:
        """The state ``name`` as ``predict`` takes it; parameters that are not trained have no average."""
        average = name.replace("param/", "ema/", 1)
        return self._state[average if self._averaged and average in self._state else name]

    @property
    def functions(self) -> StepFunctions:
        """What computes the steps; others that take the same operands may be set in their place."""
        return self._library

    @functions.setter
    def functions(self, functions: StepFunctions) -> None:
        with self._turn:
            self._library = functions

    @property
    def step_count(self) -> int:
        """Number of training steps so far."""
        return int(self._library.fetch(self._state["step"]))

    @property
    def seed(self) -> int:
        """Seed of the random streams; with the step count it determines every random number."""
        return self._given_seed

    @seed.setter
    def seed(self, value: int) -> None:
        try:
            number = operator.index(value)
        except TypeError:
            raise FqtError(f"the seed {value!r} is no integer", code="FQT202") from None
        if not -(2**63) <= number < 2**63:
            raise FqtError(f"the seed {value} does not fit into 64 bits", code="FQT202")
        with self._turn:
            self._given_seed = number
            self._library.assign(self._seed, rank_seed(number, 0 if self._group is None else self._group.rank))

    @property
    def lr(self) -> float | tuple[float, ...]:
        """Learning rate; with several parameter groups one rate each. One number sets all groups."""
        return self._rates if len(self._rates) > 1 else self._rates[0]

    @lr.setter
    def lr(self, value: float | Sequence[float]) -> None:
        rates = self._checked_rates(value)
        with self._turn:
            self._rates = rates
            self._library.assign(self._lr, rates)

    def _checked_rates(self, value: Any) -> tuple[float, ...]:
        """The learning rates, one for each group; FQT202 if there are others, or one that float32 cannot hold."""
        groups = len(self.manifest.optimizer.groups)
        try:
            several = isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str) and np.ndim(value) > 0
            rates = tuple(map(float, value)) if several else (float(value),) * groups
        except (TypeError, ValueError, OverflowError):
            raise FqtError(f"the learning rate is {value!r}", code="FQT202", hint="it must be a number") from None
        if len(rates) != groups:
            raise FqtError(f"{len(rates)} learning rates for {groups} parameter groups", code="FQT202")
        if bad := [rate for rate in rates if not 0 <= rate <= LARGEST_RATE]:
            raise FqtError(f"the learning rate is {bad[0]}", code="FQT202", hint="it must be finite and not negative")
        return rates

    @_alone
    def state_dict(self) -> dict[str, Array]:
        """Copies of parameters and buffers by their names in the module."""
        return {name: self._library.fetch(self._evaluated(key)) for name, key in self.manifest.module_names.items()}

    def tensors(self) -> dict[str, Any]:
        """The state itself by its names in the manifest, on the step's device; each has ``__dlpack__``.

        ``torch.from_dlpack(session.tensors()["param/head.weight"])`` shares the memory: the next step changes it.
        """
        return dict(self._state)

    @_alone
    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Set parameters and buffers; optimizer state and step count stay.

        Args:
            values: NumPy arrays or CPU tensors by their names in the module's state dict. ``num_batches_tracked`` may
                be there though the compiled model has none.

        Raises:
            FqtError: FQT504 for missing or unexpected names and for other shapes or types, FQT506 for NaN and for
                numbers that the type cannot hold; nothing has changed.
        """
        names = self.manifest.module_names
        optional = {name for name in values if name.rpartition(".")[2] == "num_batches_tracked"}
        if missing := sorted(names.keys() - values.keys()):
            raise FqtError(f"no value for {', '.join(missing)}", code="FQT504")
        if unexpected := sorted(values.keys() - names.keys() - optional):
            raise FqtError(f"the model has no {', '.join(unexpected)}", code="FQT504")
        specs = {spec.name: spec for spec in self.manifest.state}
        arrays = {key: _fitting(name, as_numpy(name, values[name]), specs[key]) for name, key in names.items()}
        for key, array in arrays.items():
            self._library.assign(self._state[key], array)

    @_alone
    def save_checkpoint(self, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
        """Write everything a resumed run needs: all state, step count, seed and learning rates.

        Args:
            path: the file; replaced whole or not at all.
            metadata: text to keep with it.

        Raises:
            FqtError: FQT506 if the state holds NaN, FQT508 if the file cannot be written or another process trains
                it; the file is as it was.
        """
        own = {"seed": str(self.seed), "lr": json.dumps(self._rates)}
        save_checkpoint(path, self.manifest, _Fetched(self._library, self._state), {**(metadata or {}), **own})

    @_alone
    def load_checkpoint(self, path: Path | str) -> dict[str, str]:
        """Go on where ``save_checkpoint`` was called; returns its metadata.

        The whole file is in memory before the first array changes: a file that ends, or changes, while it is read
        leaves no half of another state.

        Raises:
            FqtError: FQT502 to FQT504, see ``runtime.checkpoint``; nothing has changed.
        """
        state, metadata = load_checkpoint(path, self.manifest)
        try:
            seed, rates = int(metadata.pop("seed")), self._checked_rates(_list(json.loads(metadata.pop("lr"))))
            if not -(2**63) <= seed < 2**63:
                raise ValueError(f"the seed {seed}")
        except (KeyError, TypeError, ValueError, RecursionError, FqtError) as error:
            raise FqtError(f"{path} is damaged: {error} in its metadata", code="FQT502") from None
        self.lr, self.seed = rates, seed
        for name, operand in self._state.items():
            self._library.assign(operand, state.pop(name))
        return metadata

    @_alone
    def save(self, folder: Path | str) -> None:
        """Write an artifact with the state, seed and learning rates of now; an artifact that is there is replaced.

        Its code is the one that this session runs, also where the artifact it came from has been compiled again.

        Raises:
            FqtError: FQT502 if that code was overwritten in place, FQT506 if the state holds NaN, FQT508 if the folder
                holds something else, is in use by another process, or cannot be written.
        """
        groups = tuple({**g, "lr": lr} for g, lr in zip(self.manifest.optimizer.groups, self._rates, strict=True))
        optimizer = dataclasses.replace(self.manifest.optimizer, groups=groups)
        manifest = dataclasses.replace(self.manifest, seed=self.seed, optimizer=optimizer)
        assert self._library.build is not None
        members = self._library.build.contents()
        state = self._fetched()
        for name, array in state.items():
            check_no_nan(name, array)
        write_artifact(folder, manifest, state, members.pop(LIBRARY), members)

    def _fetched(self) -> dict[str, Array]:
        return {name: self._library.fetch(operand) for name, operand in self._state.items()}


def _layer_with_nan(loss: float, manifest: Manifest) -> str | None:
    """The layer whose number plus 1 is in the lowest 22 bits of a loss that is NaN; None if there is none.

    The step writes it there: float32's quiet NaN has as many bits for it, and they are the upper ones of float64's.
    """
    if not math.isnan(loss):
        return None
    (bits,) = struct.unpack("<Q", struct.pack("<d", loss))
    number = (bits >> 29 & 0x3FFFFF) - 1
    return manifest.layers[number].path if 0 <= number < len(manifest.layers) else None


class _Fetched(Mapping[str, Array]):
    """The state by name; an array is copied when it is asked for, and lives as long as it is looked at."""

    def __init__(self, library: StepFunctions, operands: Mapping[str, Any]) -> None:
        self._library, self._operands = library, operands

    def __getitem__(self, name: str) -> Array:
        return self._library.fetch(self._operands[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._operands)

    def __len__(self) -> int:
        return len(self._operands)


def _fitting(name: str, array: Array, spec: TensorSpec) -> Array:
    """The array in the type of ``spec``; FQT504 for another shape or kind, FQT506 for values it cannot hold."""
    if array.shape != spec.shape or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        got, expected = f"{array.dtype}{list(array.shape)}", f"{spec.dtype}{list(spec.shape)}"
        raise FqtError(f"{name} is {got}, expected {expected}", code="FQT504")
    check_no_nan(name, array)
    with np.errstate(over="ignore"):
        cast: Array = array.astype(spec.dtype)
    same_kind = array.dtype.kind == cast.dtype.kind
    changed = np.isinf(cast) & ~np.isinf(array) if cast.dtype.kind == "f" else cast != array
    if same_kind and changed.any():
        raise FqtError(f"{name} holds {array[changed].flat[0]}, which {spec.dtype} cannot hold", code="FQT506")
    return cast


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("lr is no list")
    return value
