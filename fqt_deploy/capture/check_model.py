"""The demands on a model that is to be trained, checked before and after it is traced."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fqt_deploy.core.diagnostics import FqtError

_MOST_NAMES = 8
"""Number of parameters that a line lists by name."""


_WRAPPERS: Mapping[type[nn.Module], str] = {
    nn.parallel.DistributedDataParallel: "give the module inside, model.module; the step averages gradients with "
    'distributed="fp32"',
    torch.jit.ScriptModule: "give the module as it was before torch.jit",
}
"""What to give in the place of modules that PyTorch cannot trace."""


def check_model(model: nn.Module, loss_fn: object) -> None:
    """Refuse what tracing would refuse in terms of its own, or not notice.

    Raises:
        FqtError: FQT101 for wrappers that cannot be traced and parameters that are lazy or not float32, FQT105 for a
            loss with parameters, FQT106 if nothing is trainable.
    """
    parameters = dict(model.named_parameters())
    for path, module in model.named_modules():
        if hint := next((hint for kind, hint in _WRAPPERS.items() if isinstance(module, kind)), None):
            what = f"module {path}" if path else "the model"
            raise FqtError(f"{what} is a {type(module).__name__}", code="FQT101", hint=hint)
    if lazy := [name for name, parameter in parameters.items() if is_lazy(parameter)]:
        raise FqtError(
            f"parameter {lazy[0]} has no shape yet", code="FQT101", hint="call the model once in build_model()"
        )
    if isinstance(loss_fn, nn.Module) and (learned := [name for name, _ in loss_fn.named_parameters()]):
        raise FqtError(
            f"the loss has parameters of its own: {', '.join(learned)}",
            code="FQT105",
            hint="make them parameters of the model",
        )
    if wrong := [
        f"{n} is {str(p.dtype).removeprefix('torch.')}" for n, p in parameters.items() if p.dtype != torch.float32
    ]:
        raise FqtError(f"parameter {wrong[0]}; parameters are float32", code="FQT101", hint="call model.float()")
    if not any(p.requires_grad for p in parameters.values()):
        raise FqtError("the model has no trainable parameter", code="FQT106", hint="set requires_grad_(True) on some")


def untrained_parameters(model: nn.Module, names: list[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """One line for the frozen parameters, and one for those that the loss does not depend on; neither is an error.

    Args:
        model: the user's.
        names: the names of the captured graph's outputs.
        aliases: names of parameters by other names of the same ones.

    Raises:
        FqtError: FQT106 if no parameter receives a gradient.
    """
    with_gradient = {aliases.get(n.removeprefix("grad/"), n) for n in names if n.startswith("grad/")}
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    unused = [n for n, p in model.named_parameters() if p.requires_grad and n not in with_gradient]
    if not with_gradient:
        raise FqtError(
            f"{len(unused)} trainable parameter(s) receive no gradient: {', '.join(unused)}",
            code="FQT106",
            hint="use them in forward; the loss must depend on one of them",
        )
    said = (("frozen", frozen), ("not used by the loss", unused))
    return tuple(
        f"{len(found)} parameter(s) are {what}, and stay as they are: {_listed(found)}" for what, found in said if found
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if names[_MOST_NAMES:] else "")
