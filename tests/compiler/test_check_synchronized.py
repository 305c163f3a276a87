"""A model with ``SyncBatchNorm`` asks for statistics of all processes: it does not silently get others."""

import pytest
import torch
from torch import nn

import fqt_deploy
from fqt_deploy.capture.load_model import model_source
from fqt_deploy.compiler.compile_model import lower_model
from fqt_deploy.core.diagnostics import FqtError
from fqt_deploy.settings import options_of

BATCH = torch.zeros(8, 16), torch.arange(8) % 4


def model():
    plain = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    return nn.SyncBatchNorm.convert_sync_batchnorm(plain)


def test_statistics_of_each_process_are_refused():
    source = model_source(model(), nn.functional.cross_entropy, BATCH)
    with pytest.raises(FqtError, match="1 SyncBatchNorm, the first is '1', and batch_norm is 'local'") as caught:
        lower_model(source, options_of({"distributed": "fp32"}))
    assert caught.value.code == "FQT212"
    report = fqt_deploy.check(model(), nn.functional.cross_entropy, example_inputs=BATCH, distributed="fp32")
    assert [error.code for error in report.errors] == ["FQT212"]


@pytest.mark.parametrize("options", [{}, {"distributed": "fp32", "batch_norm": "synchronized"}], ids=str)
def test_one_process_and_synchronized_statistics_are_not(options):
    assert fqt_deploy.check(model(), nn.functional.cross_entropy, example_inputs=BATCH, **options).ok
