"""Copies of models, also of those that keep results of their last forward pass."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copy_of_model(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that shares nothing with it.

    What forward kept in its attributes, such as maps of attention, or a weight that weight normalization computed, may
    hang on a graph of gradients, of which PyTorch refuses copies: these tensors are copied without it.
    """
    kept = [leaf for module in model.modules() for leaf in tree_leaves(list(vars(module).values()))]
    memo = {id(t): t.detach().clone() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    return copy.deepcopy(model, memo)
