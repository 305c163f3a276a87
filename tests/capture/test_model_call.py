"""What an example batch becomes: names, roles and structure; what cannot be compiled is refused with its name."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fqt_deploy.capture.model_call import describe_call, loss_in, named_outputs, predicted, returned_loss, without_loss
from fqt_deploy.core.diagnostics import FqtError

X, M, Y = torch.zeros(4, 3), torch.ones(4, 2, dtype=torch.bool), torch.arange(4)


class Model(nn.Module):
    def forward(self, image, mask=None, *, flag=False, labels=None):
        return image


@dataclass
class Result:
    loss: torch.Tensor
    logits: torch.Tensor
    cache: object = None


Pair = namedtuple("Pair", ["logits", "aux"])


@pytest.mark.parametrize(
    ("example", "names", "targets"),
    [
        ((X, Y), ["x", "y"], 1),
        (((X, M), Y), ["image", "mask", "y"], 1),
        (((X, None, M), Y), ["x0", "x2", "y"], 1),
        ((X, (Y, Y)), ["x", "y0", "y1"], 2),
        ((X, {"labels": Y}), ["x", "labels"], 1),
        (({"image": X, "mask": M, "flag": True}, Y), ["image", "mask", "y"], 1),
        (({"image": {"left": X, "right": X}}, Y), ["image.left", "image.right", "y"], 1),
        ({"image": X, "labels": Y, "mask": None}, ["image", "labels"], 1),
        (({"y": X}, Y), ["y", "target"], 1),
        ((X, None), ["x"], 0),
        (((X, M), ()), ["image", "mask"], 0),
        ({"image": X, "mask": M}, ["image", "mask"], 0),
    ],
)
def test_tensors_are_named(example, names, targets):
    call, tensors = describe_call(Model(), example, own_loss=False)
    assert [spec.name for spec in call.signature] == names
    assert [spec.role for spec in call.signature].count("target") == targets == len(names) - call.inputs
    assert [tuple(t.shape) for t in tensors] == [spec.shape for spec in call.signature]
    args, kwargs, _ = call.arguments(tensors[: call.inputs])
    if isinstance(example, tuple) and isinstance(example[0], dict):
        assert not args
        assert kwargs.keys() == example[0].keys()


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (X, "a pair (inputs, targets); got a Tensor"),
        ((X, Y, Y), "got a tuple of 3"),
        ((X, 3), "the example target y is a int, not a tensor"),
        ((X.double(), Y), "the example input x is float64; float32, int64, int32 and bool are supported"),
        (({"image": X, "mask": M[:1]}, Y), "input mask has shape [1, 2], and image has 4 samples"),
        ((X, Y[:3]), "the example target y has shape [3], and x has 4 samples"),
        (({"image": X, "places": torch.tensor(3)}, Y), "input places has shape []; the first axis is the batch"),
        ((X, {"box": Y}), "forward takes no box"),
        (({"step": X}, Y), "called 'step', a name that a step uses itself"),
        (({"image": X, "y.kind": X}, {"y.kind": Y}), "forward takes no y.kind"),
        (((), Y), "the example inputs hold no tensor"),
    ],
)
def test_what_no_step_can_take_is_refused_by_name(example, said):
    with pytest.raises(FqtError, match="FQT103") as caught:
        describe_call(Model(), example, own_loss=False)
    assert said in caught.value.message


def test_outputs_have_names():
    loss, logits = torch.tensor(1.0), torch.zeros(4, 2)
    result = Result(loss, logits, object())
    assert loss_in(result) is loss
    assert loss_in({"loss": loss}) is loss
    assert loss_in((loss, logits)) is loss
    assert named_outputs(without_loss(result)).keys() == {"logits"}
    assert named_outputs(Pair(logits, (logits, logits))).keys() == {"logits", "aux.0", "aux.1"}
    assert predicted(without_loss((loss, logits)), None, "training") == ("0", logits)
    assert predicted((Y, {"a": logits}), None, "training") == ("1.a", logits)
    assert predicted(Pair(loss, logits), "aux", "training")[1] is logits
    with pytest.raises(FqtError, match="FQT105: the model returns no 'box' in training mode; it returns logits, aux"):
        predicted(Pair(logits, logits), "box", "training")
    with pytest.raises(
        FqtError, match="FQT105: the model is to return its loss, and returns a dict with logits without"
    ):
        loss_in({"logits": logits})
    with pytest.raises(FqtError, match="FQT105: the model returns None in evaluation mode"):
        predicted(None, None, "evaluation")
    assert loss_in(loss) is loss
    with pytest.raises(FqtError, match="FQT105: the model returns its loss alone in training mode"):
        predicted(without_loss(loss), None, "training")


def test_a_loss_without_targets_is_the_models_own_or_one_of_its_outputs():
    class Own(nn.Module):
        def forward(self, image):
            return image.mean(), image + 1

    for example in ((X, ()), (X, None), {"image": X}):
        call, tensors = describe_call(Own(), example, own_loss=False)
        loss, outputs = call.loss_and_outputs(Own(), returned_loss, tensors)
        assert (float(loss), outputs[0].shape, call.outputs(Own(), tensors)[0].shape) == (0.0, X.shape, X.shape)
        call, tensors = describe_call(nn.Identity(), example if isinstance(example, tuple) else (X, ()), own_loss=True)
        assert call.loss_and_outputs(nn.Identity(), lambda x, _: x.sum(), tensors)[0] == 0


@pytest.mark.parametrize(
    ("outputs", "loss", "left"),
    [
        (lambda a, loss: (loss, a), "loss", ["a"]),
        (lambda a, loss: (a, loss), "loss", ["a"]),
        (lambda a, loss: (a, loss, None, a), "loss", ["a", None, "a"]),
        (lambda a, loss: (loss, a, loss * 2), "loss", ["a", "twice"]),
        (lambda a, loss: (a, a), "a", ["a"]),
    ],
    ids=["first", "last", "between", "the first of two", "none"],
)
def test_the_loss_in_a_tuple_is_its_first_or_its_only_scalar(outputs, loss, left):
    a, scalar = torch.ones(2, 3), torch.tensor(4.0)
    names = {"a": a, "loss": scalar, "twice": scalar * 2, None: None}
    returned = outputs(a, scalar)
    assert torch.equal(loss_in(returned), names[loss])
    for found, name in zip(without_loss(returned), left, strict=True):
        assert found is names[name] or torch.equal(found, names[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_floats_of_another_width_are_refused_with_what_to_do(dtype):
    with pytest.raises(FqtError, match="FQT103: the example input x is") as caught:
        describe_call(nn.Flatten(), (X.to(dtype), Y), own_loss=True)
    assert "model.float()" in caught.value.hint
