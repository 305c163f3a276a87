"""The loss that a compiled step returns: a number with what loops ask of PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from fqt_deploy.core.diagnostics import FqtError


class StepLoss(float):
    """The loss of one step, a number that is also what ``loss.item()`` and ``loss.detach()`` are called on.

    What is computed from it with numbers is such a loss again, as where a loop divides it or adds it up.
    """

    def item(self) -> float:
        """The number itself."""
        return float(self)

    def detach(self) -> StepLoss:
        """The loss itself, which is attached to nothing."""
        return self

    def cpu(self) -> StepLoss:
        """The loss itself, which lies in main memory."""
        return self

    def backward(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: the step has done it.

        Raises:
            FqtError: FQT513.
        """
        raise FqtError(
            "the step that returned this loss has gone backward and updated the parameters",
            code="FQT513",
            hint="leave out loss.backward(), the clipping of gradients, optimizer.step() and zero_grad(); "
            "scheduler.step() stays",
        )

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What ``function`` of PyTorch, such as ``torch.isfinite``, computes of the losses among its arguments."""
        plain, named = torch.utils._pytree.tree_map_only(cls, _as_tensor, (args, kwargs or {}))
        return function(*plain, **named)


def _as_tensor(loss: StepLoss) -> Tensor:
    return torch.tensor(float(loss))


def _loss_again(name: str) -> Callable[..., Any]:
    """The arithmetic ``name`` of numbers with a loss as its result."""
    of_numbers = getattr(float, name)

    def operation(self: StepLoss, *others: Any) -> Any:
        result = of_numbers(self, *others)
        return StepLoss(result) if type(result) is float else result

    return operation


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg"):
    setattr(StepLoss, f"__{_name}__", _loss_again(f"__{_name}__"))
