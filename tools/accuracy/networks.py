"""The networks of the study by name, each with its image, its batch and what builds it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqt_deploy.capture.load_model import ModelSource
from tools.examples import load_example
from tools.training import Array

HEAD = "classifier."
"""The beginning of the names of the classifier's parameters, in every network."""


@dataclass(frozen=True)
class Network:
    """One network of the study.

    Attributes:
        name: the name, as on the command line.
        image: channels, height and width of an input.
        batch: samples of a step.
        build: the module for a number of classes.
    """

    name: str
    image: tuple[int, int, int]
    batch: int
    build: Callable[[int], nn.Module]


class VGG(nn.Module):
    """A network of 3x3 convolutions, batch normalization and ReLU in pooled stages, and one linear layer."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in stages:
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, H, W] float32`` to logits ``[N, classes] float32``."""
        features: Tensor = self.pool(self.features(x))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class Block(nn.Module):
    """A block of a transformer: attention and two linear layers, each part normalized and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``x: [N, T, width] float32`` to as many."""
        samples, tokens, width = x.shape
        projected = self.qkv(self.first(x)).view(samples, tokens, 3, self.heads, width // self.heads)
        q, k, v = projected.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(samples, tokens, width))
        result: Tensor = x + self.down(nn.functional.gelu(self.up(self.second(x))))
        return result


class VisionTransformer(nn.Module):
    """Patches of 4x4 pixels, four blocks of width 128, the mean of the tokens, and one linear layer."""

    def __init__(self, classes: int, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 32, 32] float32`` to logits ``[N, classes] float32``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)).mean(1))
        return logits


def _example(name: str) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        kind: Any = type(load_example(name).module)
        module: nn.Module = kind(classes=classes)
        return module

    return build


_VGG6 = ((32, 32), (64, 64), (128, 128))
_VGG16_QUARTER = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))

NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        Network("digits", (1, 8, 8), 64, _example("digits")),
        Network("vgg6", (3, 32, 32), 128, lambda classes: VGG(_VGG6, classes)),
        Network("vgg16-quarter", (3, 32, 32), 128, lambda classes: VGG(_VGG16_QUARTER, classes)),
        Network("vgg16", (3, 32, 32), 128, _example("vgg16")),
        Network("resnet18", (3, 32, 32), 64, _example("resnet18")),
        Network("mixer", (3, 32, 32), 128, _example("mixer")),
        Network("vit", (3, 32, 32), 64, VisionTransformer),
    )
}
"""The networks: ``vgg16``, ``resnet18``, ``mixer`` and ``digits`` are the examples; the others are small, for
sweeps.
"""


@dataclass(frozen=True)
class Calibration:
    """What the grids of activations are chosen by: the weights that training starts from, and a batch.

    Attributes:
        state: parameters and buffers by name.
        x: images ``[batch, C, H, W] float32``, normalized.
        y: their labels ``[batch] int64``.
    """

    state: Mapping[str, Array]
    x: Array
    y: Array

    @property
    def digest(self) -> str:
        """Short digest of all of it."""
        digest = hashlib.sha256()
        for name in sorted(self.state):
            digest.update(name.encode() + np.ascontiguousarray(self.state[name]).tobytes())
        digest.update(self.x.tobytes() + self.y.tobytes())
        return digest.hexdigest()[:16]


def model_source(
    network: Network, classes: int, batch: int, seed: int = 0, calibration: Calibration | None = None
) -> ModelSource:
    """The network with the initial weights of ``seed`` or of ``calibration``, to be compiled for ``batch`` samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = network.build(classes)
        x, y = torch.randn(batch, *network.image), torch.randint(0, classes, (batch,))
    if calibration is not None:
        # what counts the batches of batch normalization is in no artifact
        module.load_state_dict(
            {name: torch.from_numpy(value) for name, value in calibration.state.items()}, strict=False
        )
        x, y = torch.from_numpy(calibration.x), torch.from_numpy(calibration.y)
    return ModelSource(module, nn.functional.cross_entropy, (x, y))


def initial_state(network: Network, classes: int, seed: int) -> dict[str, Array]:
    """Parameters and buffers by name, initialized with ``seed``."""
    state = model_source(network, classes, 1, seed).module.state_dict()
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


def with_new_head(pretrained: dict[str, Array], network: Network, classes: int, seed: int) -> dict[str, Array]:
    """The network ``pretrained`` with a new classifier for ``classes`` classes, initialized with ``seed``."""
    fresh = initial_state(network, classes, seed)
    return {name: value if name.startswith(HEAD) else pretrained.get(name, value) for name, value in fresh.items()}
