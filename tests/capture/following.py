"""Compiled steps beside eager PyTorch."""

import pytest
import torch

from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.core.options import CompileOptions
from fqt_deploy.runtime import load


def assert_follows_pytorch(source, folder):
    """Four steps of Adam, nothing in 1 bit, lose what PyTorch's lose; returns the session, and the batch by name."""
    compile_model(source, CompileOptions(recipe="none", exclude=("*",)), folder)
    session = load(folder)
    batch = {spec.name: x.numpy() for spec, x in zip(source.call.signature, source.example_inputs, strict=True)}
    adam = torch.optim.Adam(source.module.parameters(), lr=1e-3)
    for _ in range(4):
        loss, _ = source.loss_and_outputs(source.module, source.example_inputs)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert session.step(**batch) == pytest.approx(loss.item(), rel=1e-4)
    return session, batch
