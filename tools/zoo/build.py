"""Build a row of ``models.jsonl``: a model of timm, torchvision or transformers, a batch for it, and a loss."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = Path(__file__).with_name("models.jsonl")
"""A JSON object a line.

``model`` names it. ``part`` is 1 for the models whose gaps were listed before they compiled, and 2 for those that were
tried afterwards. ``train`` marks those that are trained, too; ``rate`` is the learning rate of their comparison with
eager PyTorch. ``name`` is the function of timm or torchvision. For transformers ``class`` is the model's, ``config``
goes to its configuration, ``task`` is a key of ``TASKS``, ``output`` the field of its result, ``size`` and ``shape``
those of a sample, and ``attention`` the implementation of attention.
"""
SAMPLES, WORDS, LENGTH, CLASSES, PARTS, IMAGE = 4, 128, 16, 10, 5, 64
IMAGES = (64, 96, 128, 160, 192, 224, 256, 288, 384)
"""Sizes of images to try, for a model of timm takes the first that fits."""

Row = Mapping[str, Any]
Loss = Callable[[Any, Any], Tensor]


class ZooModel(NamedTuple):
    """A model that gives one tensor, one batch (input, targets) for it, and its loss."""

    module: nn.Module
    batch: tuple[Tensor, Tensor]
    loss: Loss


class OneTensor(nn.Module):
    """A model from one tensor to one tensor.

    Args:
        inner: the model.
        output: picks the tensor from its result.
        decoder: give the input to the decoder, too.
    """

    def __init__(self, inner: nn.Module, output: Callable[[Any], Any], decoder: bool = False) -> None:
        super().__init__()
        self.inner, self.output, self.decoder = inner, output, decoder

    def forward(self, x: Tensor) -> Any:
        """Map a batch to the chosen output."""
        given = self.inner(input_ids=x, decoder_input_ids=x, use_cache=False) if self.decoder else self.inner(x)
        return self.output(given)


class Recurrent(nn.Module):
    """Token ids through an embedding and a recurrent layer ``kind``, and a head on its last step."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(WORDS, 64), kind(64, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map ids [N, length] to logits [N, classes]."""
        logits: Tensor = self.head(self.layer(self.words(x))[0][:, -1])
        return logits


def rows() -> list[dict[str, Any]]:
    """All rows of ``models.jsonl``."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()]


def build(row: Row) -> ZooModel:
    """The model of a row with random weights, its batch and its loss, always the same."""
    declare_operators()
    torch.manual_seed(0)
    return _BUILDERS[row["model"].partition("/")[0]](row)


def each_part(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits [N, length, classes] and targets [N, length]."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def pixels(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of logits [N, classes, h, w], enlarged, and targets [N, H, W]."""
    enlarged = F.interpolate(logits, size=targets.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(enlarged, targets)


def alignment(logits: Tensor, targets: Tensor) -> Tensor:
    """Connectionist temporal classification of logits [N, length, classes] and targets [N, symbols]."""
    steps, (samples, symbols) = F.log_softmax(logits, -1).transpose(0, 1), targets.shape
    return F.ctc_loss(steps, targets, torch.full((samples,), steps.shape[0]), torch.full((samples,), symbols))


def _ids(row: Row) -> Tensor:
    return torch.randint(3, WORDS, (SAMPLES, LENGTH))


def _ended_ids(row: Row) -> Tensor:
    ids = torch.randint(3, WORDS, (SAMPLES, LENGTH))
    ids[:, -1] = row["config"].get("eos_token_id", 2)
    return ids


def _image(row: Row) -> Tensor:
    size = row.get("size", IMAGE)
    return torch.randn(SAMPLES, 3, size, size)


def _sound(row: Row) -> Tensor:
    return torch.randn(SAMPLES, 800)


def _shaped(row: Row) -> Tensor:
    return torch.randn(SAMPLES, *row["shape"])


def _targets(classes: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, classes, (SAMPLES, *shape))


_CLASS = _targets(CLASSES)
TASKS: dict[str, tuple[Callable[[Row], Tensor], Callable[[], Tensor], Loss]] = {
    "classify texts": (_ids, _CLASS, F.cross_entropy),
    "classify texts that end": (_ended_ids, _CLASS, F.cross_entropy),
    "find answers": (_ids, _targets(LENGTH), F.cross_entropy),
    "tag tokens": (_ids, _targets(PARTS, LENGTH), each_part),
    "predict tokens": (_ids, _targets(64, LENGTH), each_part),
    "translate": (_ids, _targets(WORDS, LENGTH), each_part),
    "classify images": (_image, _CLASS, F.cross_entropy),
    "segment images": (_image, _targets(PARTS, IMAGE, IMAGE), pixels),
    "classify sound": (_sound, _CLASS, F.cross_entropy),
    "transcribe sound": (_sound, lambda: torch.randint(1, 32, (SAMPLES, 5)), alignment),
    "classify spectrograms": (_shaped, _CLASS, F.cross_entropy),
}
"""What makes inputs and targets, and the loss, by what a model is for."""


def _transformers(row: Row) -> ZooModel:
    library: Any = importlib.import_module("transformers")
    kind = getattr(library, row["class"])
    config = kind.config_class(**row["config"])
    if "attention" in row:
        config._attn_implementation = row["attention"]
    inner = kind(config)
    if row["task"] == "predict tokens":
        inner.config.use_cache = False
    output = row.get("output", "start_logits" if row["task"] == "find answers" else "logits")
    inputs, targets, loss = TASKS[row["task"]]
    module = OneTensor(inner, lambda result: getattr(result, output), row["task"] == "translate")
    return ZooModel(module, (inputs(row), targets()), loss)


def _timm(row: Row) -> ZooModel:
    """The model for the smallest image that it takes."""
    timm: Any = importlib.import_module("timm")
    found: Exception | None = None
    for size in IMAGES:
        for settings in ({"img_size": size}, {}):
            try:
                torch.manual_seed(0)
                x = torch.randn(SAMPLES, 3, size, size)
                with torch.no_grad():
                    logits = timm.create_model(row["name"], num_classes=CLASSES, **settings)(x)
                if logits.shape != (SAMPLES, CLASSES):
                    raise ValueError(f"the logits have the shape {tuple(logits.shape)}")
                torch.manual_seed(0)
                return ZooModel(
                    timm.create_model(row["name"], num_classes=CLASSES, **settings), (x, _CLASS()), F.cross_entropy
                )
            except Exception as error:  # noqa: BLE001 - whatever a model says to a size that it does not take
                found = error
    raise found or ValueError(row["name"])


class _Detector(nn.Module):
    """Class logits of a detector's anchors, without choosing boxes."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, x: Tensor) -> Tensor:
        """Map images to class logits [N, anchors, classes]."""
        logits: Tensor = self.head(list(self.backbone(x).values()))["cls_logits"]
        return logits


def _any_object(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether there is an object at all: targets [N]."""
    return F.binary_cross_entropy_with_logits(logits.mean(1)[:, :1], targets[:, None].float())


_SEGMENTATION = {
    "fcn": "fcn_resnet50",
    "deeplab": "deeplabv3_mobilenet_v3_large",
    "lraspp": "lraspp_mobilenet_v3_large",
}


def _torchvision(row: Row) -> ZooModel:
    models: Any = importlib.import_module("torchvision").models
    kind, _, name = row["name"].rpartition("-")
    x = torch.randn(SAMPLES, 3, IMAGE, IMAGE)
    if kind == "segmentation":
        inner = getattr(models.segmentation, _SEGMENTATION[name])(
            weights=None, weights_backbone=None, num_classes=PARTS
        )
        return ZooModel(OneTensor(inner, lambda result: result["out"]), (x, _targets(PARTS, IMAGE, IMAGE)()), pixels)
    if kind == "detection":
        whole = models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=PARTS)
        return ZooModel(_Detector(whole), (x, torch.zeros(SAMPLES, dtype=torch.int64)), _any_object)
    if kind == "video":
        module = getattr(models.video, name)(weights=None, num_classes=CLASSES)
        return ZooModel(module, (torch.randn(2, 3, 8, IMAGE, IMAGE), _CLASS()[:2]), F.cross_entropy)
    size, settings = _OWN_SIZES.get(name, (IMAGE, {}))
    module = getattr(models, name)(weights=None, num_classes=CLASSES, **settings)
    return ZooModel(module, (torch.randn(SAMPLES, 3, size, size), _CLASS()), F.cross_entropy)


_OWN_SIZES: dict[str, tuple[int, dict[str, Any]]] = {
    "googlenet": (IMAGE, {"init_weights": False, "aux_logits": False}),
    "inception_v3": (96, {"init_weights": False, "aux_logits": False}),
    "vit_b_32": (IMAGE, {"image_size": IMAGE}),
    "maxvit_t": (224, {}),
}
"""Sizes of images and arguments that a model of torchvision needs."""


def declare_operators() -> None:
    """Declare torchvision's operators: a wheel for CUDA cannot load its own, and timm and transformers import it."""
    if _DECLARED:
        return
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)


_DECLARED: list[Any] = []
"""Libraries of operators, which live as long as these objects."""


def _torch(row: Row) -> ZooModel:
    kind = {"lstm": nn.LSTM, "gru": nn.GRU}[row["model"].partition("/")[2]]
    return ZooModel(Recurrent(kind), (_ids(row), _CLASS()), F.cross_entropy)


_BUILDERS: dict[str, Callable[[Row], ZooModel]] = {
    "hf": _transformers,
    "timm": _timm,
    "torchvision": _torchvision,
    "torch": _torch,
}
"""What builds a row, by what stands before the slash of its name."""
