"""Apply one schedule rule to an op's loop nests, for tests of single rules."""

import json

import torch
from tvm import te

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.ops.lib.dtypes import dtype_name
from fqt_deploy.ops.op import FQT_OPS


def scheduled(rule, name, arguments, features):
    """The kernel that ``rule`` makes of op ``name`` on operands like ``arguments``; None if it does not take it."""
    operands = [
        te.placeholder(list(a.shape), dtype_name(a.dtype), name=f"p{i}") if isinstance(a, torch.Tensor) else a
        for i, a in enumerate(arguments)
    ]
    function = te.create_prim_func(
        [*(o for o in operands if isinstance(o, te.Tensor)), FQT_OPS[name](*operands).compute()]
    )
    attributes = {"fqt.op": name, "fqt.outputs": 1, "global_symbol": "main"}
    attributes["fqt.arguments"] = json.dumps([None if isinstance(a, torch.Tensor) else a for a in arguments])
    return rule.apply(function.with_attrs(attributes), features)
