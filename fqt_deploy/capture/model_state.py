"""Tensors of a model by the names that the step knows them by: ``param/...`` and ``buffer/...``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

from fqt_deploy.core.graph import StateTensor


def model_state(model: nn.Module) -> dict[str, StateTensor]:
    """The state of a model by name: parameters, tied ones once, and buffers."""
    state = {f"param/{n}": StateTensor(f"param/{n}", "param", p.detach()) for n, p in model.named_parameters()}
    for name, buffer in model.named_buffers():
        state[f"buffer/{name}"] = StateTensor(f"buffer/{name}", "buffer", buffer.detach())
    return state


def constant_name(tensor: Tensor) -> str:
    """A tensor that belongs to no module is state that nothing updates, named by its content: equal ones are one."""
    content = tensor.detach().contiguous().numpy().tobytes() + f"{tensor.dtype}{list(tensor.shape)}".encode()
    return f"buffer/constant_{hashlib.sha256(content).hexdigest()[:12]}"


def constant_state(constants: Iterable[Tensor]) -> dict[str, StateTensor]:
    """The state of tensors that belong to no module, by name."""
    tensors = [(constant_name(tensor), tensor) for tensor in constants]
    return {name: StateTensor(name, "buffer", tensor.detach()) for name, tensor in tensors}
