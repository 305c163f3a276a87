"""Training in PyTorch behind the interface of a compiled session: what the compiled steps are compared with.

``binarized``: the same 1-bit network by fake quantization, with fp32 gradients; else the network as it is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tools.accuracy.networks import Network, model_source
from tools.compare_eager import fake_quantized
from tools.training import Array

_OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
_WRAPPED = ".layer."
"""The part that a parameter's name has more inside a fake-quantized layer."""


class TorchSession:
    """A PyTorch model in training.

    Args:
        network: what to build.
        classes: number of classes of the task.
        batch: samples that ``predict`` takes at once.
        binarized: paths of the layers to binarize.
        optimizer: name and hyperparameters, as in ``rows.OPTIMIZERS``.
        bf16: run forward under autocast.
    """

    def __init__(
        self,
        network: Network,
        classes: int,
        batch: int,
        binarized: list[str],
        optimizer: Mapping[str, Any],
        *,
        bf16: bool = False,
    ) -> None:
        torch.set_num_threads(int(os.environ.get("FQT_NUM_THREADS") or len(os.sched_getaffinity(0))))
        source = model_source(network, classes, batch)
        model = fake_quantized(source.module, dict.fromkeys(binarized)).train()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch, self.bf16, self.loss_fn = batch, bf16, source.loss_fn
        self.seed = 0  # nothing here is random
        self.step_count = 0
        arguments = {name: value for name, value in optimizer.items() if name != "optimizer"}
        kind: Any = _OPTIMIZERS[optimizer["optimizer"]]
        self.optimizer = kind(self.model.parameters(), lr=1e-3, foreach=True, **arguments)

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.param_groups[0]["lr"] = value

    def step(self, x: Array, y: Array) -> float:
        """Train on one batch, ``x: [N, ...] float32`` and ``y: [N] int64``; returns its loss."""
        images, labels = self._images(x), torch.from_numpy(y)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.loss_fn(self.model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step_count += 1
        return loss.item()

    def predict(self, x: Array) -> Array:
        """The logits ``[N, classes] float32`` of ``x``."""
        self.model.eval()
        with torch.no_grad(), self._autocast():
            logits = [self.model(self._images(x[i : i + self.batch])).float() for i in range(0, len(x), self.batch)]
        self.model.train()
        result: Array = torch.cat(logits).numpy()
        return result

    def state_dict(self) -> dict[str, Array]:
        """Parameters and buffers by the names of a compiled session."""
        return {name: tensor.contiguous().numpy().copy() for name, tensor in self._named().items()}

    def load_state_dict(self, values: Mapping[str, Array]) -> None:
        """Set parameters and buffers to ``values``."""
        with torch.no_grad():
            for name, tensor in self._named().items():
                tensor.copy_(torch.from_numpy(np.asarray(values[name])))

    def save_checkpoint(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write everything a resumed run needs, whole or not at all."""
        temporary = path.with_suffix(".part")
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step_count}
        torch.save({**state, "metadata": dict(metadata)}, temporary)
        temporary.replace(path)

    def load_checkpoint(self, path: Path) -> dict[str, str]:
        """Go on where ``save_checkpoint`` was called; returns its metadata."""
        with path.open("rb") as file:  # by its name, PyTorch 2.13 would take "x.safetensors" for what it did not write
            stored = torch.load(file, weights_only=True)
        self.model.load_state_dict(stored["model"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.step_count = stored["step"]
        metadata: dict[str, str] = stored["metadata"]
        return metadata

    def _named(self) -> dict[str, Tensor]:
        named = self.model.state_dict().items()
        return {
            name.replace(_WRAPPED, "."): tensor for name, tensor in named if not name.endswith("num_batches_tracked")
        }

    def _images(self, x: Array) -> Tensor:
        images = torch.from_numpy(x)
        return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images

    def _autocast(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.bf16 else nullcontext()
