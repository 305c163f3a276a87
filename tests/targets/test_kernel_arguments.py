"""Arguments of kernels: constants by the names of the schema, whatever else is left out, defaults are filled in."""

import json

import pytest
import torch

import fqt_deploy.ops.registry  # noqa: F401 - defines the ops
from fqt_deploy.targets.kernel_arguments import ARGUMENTS, arguments_of, encoded
from tests.targets.op_kernel import op_function

TENSOR = torch.zeros(1)


def test_arguments_of_an_op_have_the_names_of_its_schema():
    found = encoded(torch.ops.fqt.conv2d_input_grad.default, (TENSOR, TENSOR, [8, 6], [1, 2], [0, 1]))
    assert json.loads(found) == {"input_hw": [8, 6], "stride": [1, 2], "padding": [0, 1]}


def test_an_operand_that_is_absent_is_a_constant_and_one_that_is_given_is_not():
    op = torch.ops.fqt.quantize_pack_channels.default
    every, some = (json.loads(encoded(op, (TENSOR, index, TENSOR, TENSOR, TENSOR, 4))) for index in (None, TENSOR))
    assert every == {"index": None, "bits": 4}
    assert some == {"bits": 4}


def test_keywords_and_defaults_are_arguments():
    op = torch.ops.aten.sum.dim_IntList
    assert json.loads(encoded(op, (TENSOR, [0]), {"keepdim": True})) == {"dim": [0], "keepdim": True, "dtype": None}
    assert json.loads(encoded(op, (TENSOR, [0], False), {"dtype": torch.float32})) == {"dim": [0], "keepdim": False}
    assert json.loads(encoded(torch.ops.aten.cat.default, ([TENSOR, TENSOR], 1))) == {"dim": 1}


def test_a_kernel_into_which_something_was_inlined_has_none():
    function = op_function("conv2d", (torch.zeros(1, 4, 4, 2), torch.zeros(3, 2, 3, 3), [1, 1], [1, 1]))
    assert arguments_of(function) == {"stride": [1, 1], "padding": [1, 1]}
    assert arguments_of(function.without_attr(ARGUMENTS)) is None


def test_arguments_by_position_are_refused():
    function = op_function("conv2d", (torch.zeros(1, 4, 4, 2), torch.zeros(3, 2, 3, 3), [1, 1], [1, 1]))
    with pytest.raises(AssertionError, match="are not named"):
        arguments_of(function.with_attr(ARGUMENTS, "[null, null, [1, 1], [1, 1]]"))
