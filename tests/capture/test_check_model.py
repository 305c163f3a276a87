"""Wrappers that cannot be traced are named, with what to give in their place."""

import pytest
import torch
from torch import nn

from fqt_deploy.capture.check_model import check_model
from fqt_deploy.core.diagnostics import FqtError


def test_wrappers_are_refused_by_name():
    parallel = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)  # without processes
    nn.Module.__init__(parallel)
    parallel.module = nn.Linear(3, 2)
    with pytest.raises(FqtError, match="FQT101: the model is a DistributedDataParallel") as caught:
        check_model(parallel, None)
    assert 'model.module; the step averages gradients with distributed="fp32"' in caught.value.hint
    scripted = nn.Sequential(torch.jit.script(nn.Linear(3, 2)))
    with pytest.raises(FqtError, match="FQT101: module 0 is a RecursiveScriptModule"):
        check_model(scripted, None)
    check_model(nn.DataParallel(nn.Linear(3, 2)), None)
