"""The compiled step as ``fqt_deploy.compile`` returns it: a session that lives among PyTorch's objects."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn

from fqt_deploy.binary_layers import Grid, binarized
from fqt_deploy.capture.load_model import ModelSource
from fqt_deploy.capture.model_call import predicted
from fqt_deploy.compiler.describe import recorded_grids
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.runtime.session import Session
from fqt_deploy.step_loss import StepLoss
from fqt_deploy.torch_optimizer import FollowedOptimizer, ScheduledRates

DIFFERENCE = 0.1
"""Relative difference of a module's predictions from the step's that flipped signs may explain, but no other function.

Sums in another order flip the sign of a value that is all but zero, and each flip moves later ones.
"""


class CompiledStep(Session):
    """A session whose state dict is one of PyTorch tensors, and that is called like a function.

    What is given tensors returns tensors; NumPy arrays are returned for NumPy arrays.

    Attributes:
        folder: holds the compiled library for as long as the step lives.
        source: the model that was compiled, with the example batch.
    """

    folder: tempfile.TemporaryDirectory[str] | None = None
    source: ModelSource | None = None
    _followed: FollowedOptimizer | None = None
    _given_tensors = False

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the learning rates of each step from ``optimizer``, whose groups are those of the step."""
        self._followed = FollowedOptimizer(optimizer)

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that the step follows: one of ``torch.optim`` for ``lr_scheduler`` to work on.

        It is the one that was compiled, or stands for ``fqt_deploy.Adam`` and the like. Its ``step`` is not to be
        called: the compiled step updates the parameters.
        """
        if self._followed is None:
            rates = self.lr if isinstance(self.lr, tuple) else (self.lr,)
            groups = [{**g, "lr": lr} for g, lr in zip(self.manifest.optimizer.groups, rates, strict=True)]
            self.follow(ScheduledRates(groups))
        assert self._followed is not None
        return self._followed.optimizer

    def __call__(self, *batch: Any, **named: Any) -> StepLoss:
        """Run ``step`` on a batch and return its loss."""
        return self.step(*batch, **named)

    def step(self, *batch: Any, check: bool = False, **named: Any) -> StepLoss:
        """Train on one batch, as ``Session.step``, with the learning rates of ``optimizer``.

        The loss is a number, with ``loss.item()`` and the like.

        Raises:
            FqtError: also FQT210 if another hyperparameter of the optimizer has changed.
        """
        if self._followed is not None:
            if (rates := tuple(self._followed.rates())) != self._rates:
                Session.lr.fset(self, rates)  # type: ignore[attr-defined]
            self._followed.note_step()
        loss = super().step(*batch, check=check, **named)
        self._given_tensors = _has_tensors((batch, named))
        return StepLoss(loss)

    def predict(self, *inputs: Any, **named: Any) -> Any:
        """Logits of any number of samples, as ``Session.predict``: a tensor where an input is one."""
        logits = super().predict(*inputs, **named)
        return torch.from_numpy(logits) if _has_tensors((inputs, named)) else logits

    @property
    def last_logits(self) -> Any:
        """Logits of the batch of the latest ``step``, in training mode: a tensor where an input was one."""
        logits = super().last_logits
        return torch.from_numpy(logits) if self._given_tensors and logits is not None else logits

    @property
    def lr(self) -> float | tuple[float, ...]:
        """Learning rate; with several parameter groups one rate each. One number sets all groups."""
        rates = self._rates if self._followed is None else tuple(self._followed.rates())
        return rates if len(rates) > 1 else rates[0]

    @lr.setter
    def lr(self, value: float | Sequence[float]) -> None:
        Session.lr.fset(self, value)  # type: ignore[attr-defined]
        if self._followed is not None:
            self._followed.set_rates(self._rates)

    def state_dict(self) -> dict[str, Any]:
        """Copies of parameters and buffers; ``model.load_state_dict`` takes it.

        The weights of 1-bit layers are latent: the step computes with their signs. The model that was compiled computes
        with them as they are, which is another function: ``to_torch()`` is the module that predicts as ``predict``.
        """
        return {name: torch.from_numpy(array) for name, array in super().state_dict().items()}

    def to_torch(self) -> nn.Module:
        """A PyTorch module that predicts what ``predict`` does, in evaluation mode, for batches of any size.

        It is a copy of the model that was compiled, with the weights of now and layers that compute on signs
        (``fqt_deploy.binary_layers``) where the step does; its state dict has the names of the model's.

        Raises:
            FqtError: FQT513 if a 1-bit layer has no such form, or the module would predict something else.
        """
        assert self.source is not None
        model = binarized(
            self.source.module, self._grids(), {x.path: x.weight_bits for x in self.manifest.layers}
        ).eval()
        state = self.state_dict()
        known = model.state_dict()
        model.load_state_dict({name: state.get(name, value) for name, value in known.items()})
        call = self.source.call
        inputs = self.source.example_inputs[: call.inputs]
        with torch.no_grad():
            chosen = predicted(call.outputs(model, inputs), self.manifest.prediction, "evaluation")[1]
        theirs, ours = chosen.numpy().astype(np.float64), self.predict(*inputs).numpy()
        difference = float(np.linalg.norm(theirs - ours) / max(float(np.linalg.norm(ours)), 1e-30))
        if not difference <= DIFFERENCE:
            raise FqtError(
                f"as a PyTorch module the model would predict something else: it differs by {difference:.1%}",
                code="FQT513",
                hint="zeros put in front of a 1-bit convolution belong into its padding=; a layer whose weight is "
                "used by other code than its own forward has no such form: predict with the step",
            )
        return model

    def _grids(self) -> dict[str, Grid | None]:
        """The grid of the activations of each 1-bit layer by its path; None for signs."""
        assert self.source is not None
        grids = {w: Grid(g.bits, g.signed, g.spacing) for w, g in recorded_grids(self.manifest).items()}
        modules = dict(self.source.module.named_modules())
        names = {id(tensor): f"param/{name}" for name, tensor in self.source.module.named_parameters()}
        paths = [layer.path for layer in self.manifest.layers if layer.decision == "1-bit"]
        weights = {path: names.get(id(getattr(modules.get(path), "weight", None)), "") for path in paths}
        return {path: grids.get(weight) for path, weight in weights.items()}

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse ``copy.deepcopy``, ``pickle`` and ``torch.save``: a step is a loaded library with its state."""
        raise FqtError(
            "a compiled step cannot be copied, pickled or given to torch.save",
            code="FQT513",
            hint="step.save_checkpoint(file) keeps all of its state, step.save(folder) an artifact to load again, "
            "torch.save(step.state_dict(), file) the weights",
        )


def _has_tensors(value: Any) -> bool:
    """Whether one of the values, nested as a batch may be, is a tensor."""
    if isinstance(value, Mapping):
        return any(map(_has_tensors, value.values()))
    return any(map(_has_tensors, value)) if isinstance(value, (tuple, list)) else isinstance(value, torch.Tensor)
