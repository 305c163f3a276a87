"""Products that backward computes again: what several layers read is gathered before the first of them reads it."""

import pytest
import torch
from torch import nn

from fqt_deploy.core.optimizer import SGD
from fqt_deploy.passes import recompute_kept

fqt = torch.ops.fqt


class Inverted(nn.Module):
    """A layer and the shortcut around it read the same codes, and backward comes to the shortcut first."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(32, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(128, 48, 1, bias=False), nn.BatchNorm2d(48))
        self.shortcut = nn.Sequential(nn.Conv2d(32, 48, 1, bias=False), nn.BatchNorm2d(48))
        self.head = nn.Linear(48, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((self.narrow(self.wide(x)) + self.shortcut(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("agp", ["nested", "once"])
def test_codes_of_two_layers_are_gathered_before_both(agp, graph_after, monkeypatch):
    """Pipelines check each graph: a value that is read before it is computed ends them."""
    monkeypatch.setattr(recompute_kept, "SMALLEST", 120_000)  # of the wide layer alone
    monkeypatch.setattr(recompute_kept, "OPERATIONS_PER_BYTE", 1e9)
    graph = graph_after(Inverted(), "recompute-kept", agp=agp, optimizer=SGD(lr=1.0))
    again = [n for n in graph.calls(fqt.level_conv2d.default) if n.meta.get("phase") == "backward"]
    gathers = [(g.args[0], g.args[1]) for g in graph.calls(fqt.gather_rows.default)]
    assert len(again) == 1
    assert len(gathers) == len(set(gathers)), "the same samples are gathered once"
