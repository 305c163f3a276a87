"""Which ops capture decomposes: rules for those that have a kernel are left out only where it is meant so."""

from __future__ import annotations

import torch

from fqt_deploy.capture.decompositions import decompositions
from fqt_deploy.ops.aten.compound_ops import DECOMPOSED, KEPT

aten = torch.ops.aten


def test_every_decomposed_op_has_a_rule() -> None:
    table = decompositions()
    for packet in DECOMPOSED:
        assert any(getattr(packet, overload) in table for overload in packet.overloads()), packet


def test_kept_ops_have_none_but_ours() -> None:
    table = decompositions()
    ours = [aten.bernoulli.default, aten.var.dim, aten.var.correction]
    for packet in KEPT:
        assert not [o for n in packet.overloads() if (o := getattr(packet, n)) in table and o not in ours], packet
