"""The circumstances of a trace of a model, and what is said if it fails."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fqt_deploy.core.diagnostics import FqtError, SourceLocation


@contextlib.contextmanager
def plain_ops() -> Iterator[None]:
    """Within this context PyTorch spells attention and recurrent layers in plain ops, not as calls of fused kernels."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextlib.contextmanager
def module_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Within this context ``model`` is in training or in evaluation mode.

    A model that comes in training mode, as models are made, trains as it comes: parts of it that are in evaluation
    mode, such as a frozen body with its batch normalization and dropout, stay in it. A model that comes in evaluation
    mode as a whole is trained as after ``model.train()``.
    """
    before = {m: m.training for m in model.modules()}
    model.train(training)
    if training and before[model]:
        for m, was in before.items():
            m.training = m.training and was
    try:
        yield
    finally:
        for m, was in before.items():
            m.training = was


_HINTS = (
    (r"nonzero|masked_select", "keep all elements, and mask them: torch.where(mask, x, 0); index with integers alone"),
    (r"unique|bincount|DynamicOutputShape", "give the result a fixed size: compare with torch.arange(n), then sum"),
    (
        r"_local_scalar_dense|data-dependent|DataDependent",
        "choose with torch.where(condition, a, b) in the place of `if`; compute on tensors in the place of .item()",
    ),
)
"""What to write instead, by what PyTorch's error names."""


def untraceable(message: str, hint: str) -> FqtError:
    """FQT104 for what a model calls that no compiled step can do, with the innermost line of the user's file."""
    error = FqtError(message, code="FQT104", hint=hint)
    error.location = SourceLocation.of_frame(sys._getframe(1))
    return error


def trace_error(what: str, error: Exception) -> FqtError:
    """FQT104, with the first line of PyTorch's error and the line of the user's file."""
    cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, f"{type(error).__name__}: {cause}")), None)
    told = FqtError(
        f"cannot trace the {what} step: {type(error).__name__}: {cause}",
        code="FQT104",
        hint=hint or "the model must be traceable by torch.export: no data-dependent control flow, no `.data`",
    )
    told.location = SourceLocation.of_error(error) or SourceLocation.of_text(str(error))
    return told
