"""Processes of a distributed training that are killed, a few times: the tool does it often."""

import json

import pytest

from fqt_deploy.compiler.compile_model import compile_model
from fqt_deploy.settings import options_of
from tests.distributed.conftest import PLAIN, source
from tools.kill_ranks import RESULTS, kill_all


@pytest.mark.slow
def test_runs_that_are_killed_end_with_a_code_and_lose_nothing(tmp_path):
    artifact = tmp_path / "model.fqt"
    compile_model(source(8), options_of({**PLAIN, "distributed": "fp32"}), artifact)
    assert kill_all(artifact, tmp_path / "runs", kills=4, seed=0, minutes=20) == 0
    kills = [json.loads(line) for line in (tmp_path / "runs" / RESULTS).read_text().splitlines()]
    assert [kill["launchers"] for kill in kills] == [1, 2, 1, 2]
    assert not any(kill["problem"] for kill in kills)
