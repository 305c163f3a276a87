"""Training by several processes on ``torch.distributed``; needs PyTorch, but not the compiler."""

from __future__ import annotations

from fqt_deploy.distributed.torch_group import TorchGroup, join_group, ranks_in_environment

__all__ = ["TorchGroup", "join_group", "ranks_in_environment"]
