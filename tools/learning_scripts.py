"""Small forms of training scripts that people bring: a network, its loss, its batches and a learning rate each."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.accuracy.data import Dataset, load_dataset
from tools.training import Array

Batch = tuple[Any, Any]
"""Inputs, a tensor or a tuple of them, and targets or None."""
IMAGES = 20_000
"""Training images that batches are drawn from."""


Batches = Callable[[Dataset, np.random.Generator], Iterator[Batch]]
"""Batches without end, from the data set and a generator of random numbers."""


@dataclass(frozen=True)
class Pretraining:
    """What a network has learned before a script fine-tunes it, in eager PyTorch.

    Attributes:
        batches: of other data.
        rate: learning rate of Adam.
        steps: so many are made.
    """

    batches: Batches
    rate: float
    steps: int


@dataclass(frozen=True)
class Script:
    """One training script.

    Attributes:
        build: the network.
        loss: of outputs and targets.
        batches: what it trains on.
        rate: learning rate of Adam.
        steps: so many are made.
        pretraining: what the network has learned before; None for random weights.
    """

    build: Callable[[], nn.Module]
    loss: Callable[[Any, Any], Tensor]
    batches: Batches
    rate: float
    steps: int
    pretraining: Pretraining | None = None


class Residual(nn.Module):
    """Two 3x3 convolutions with batch normalization and a shortcut, a 1x1 convolution where the size changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.short = nn.Sequential()
        if stride != 1 or channels != width:
            self.short = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, channels, H, W] float32`` to those of this width."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


class ResNet(nn.Module):
    """Three residual blocks of 32, 64 and 128 channels, the mean of the pixels, and a head."""

    def __init__(self, head: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2))
        self.head = head()

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 32, 32] float32`` to what the head says of them."""
        result: Tensor = self.head(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))
        return result


class TimedBlock(nn.Module):
    """Two 3x3 convolutions with group normalization, the embedded time between them, and a shortcut."""

    def __init__(self, channels: int, width: int, time: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.GroupNorm(8, channels), nn.Conv2d(channels, width, 3, padding=1)
        self.t = nn.Linear(time, width)
        self.n2, self.c2 = nn.GroupNorm(8, width), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map images ``x: [N, channels, H, W] float32`` at ``time: [N, T] float32`` to those of this width."""
        h = self.c1(F.silu(self.n1(x))) + self.t(F.silu(time))[:, :, None, None]
        result: Tensor = self.c2(F.silu(self.n2(h))) + self.skip(x)
        return result


class UNet(nn.Module):
    """A U-Net of two sizes that predicts the noise of an image."""

    def __init__(self, width: int = 32, time: int = 128) -> None:
        super().__init__()
        self.frequencies = width // 2
        self.time1, self.time2 = nn.Linear(width, time), nn.Linear(time, time)
        self.inp = nn.Conv2d(3, width, 3, padding=1)
        self.d1, self.down = TimedBlock(width, width, time), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.d2, self.mid = TimedBlock(2 * width, 2 * width, time), TimedBlock(2 * width, 2 * width, time)
        self.u2, self.up = TimedBlock(4 * width, 2 * width, time), nn.Conv2d(2 * width, width, 3, padding=1)
        self.u1, self.norm = TimedBlock(2 * width, width, time), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map images ``x: [N, 3, H, W] float32`` at times ``t: [N] float32`` to their noise."""
        rates = torch.exp(-math.log(10_000.0) * torch.arange(self.frequencies) / self.frequencies)
        angles = t[:, None] * rates[None]
        time = self.time2(F.silu(self.time1(torch.cat([angles.sin(), angles.cos()], 1))))
        wide = self.d1(self.inp(x), time)
        deep = self.d2(self.down(wide), time)
        h = self.u2(torch.cat([self.mid(deep, time), deep], 1), time)
        h = self.up(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        result: Tensor = self.out(F.silu(self.norm(self.u1(torch.cat([h, wide], 1), time))))
        return result


class Inverted(nn.Module):
    """An inverted bottleneck as pytorch-cifar has it: 1x1, depthwise 3x3 and 1x1, with a shortcut at stride 1."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1, self.bn1 = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.stride, self.shortcut = stride, nn.Sequential()
        if stride == 1 and channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, channels, H, W] float32`` to those of this width."""
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        y = self.bn3(self.conv3(y))
        result: Tensor = y + self.shortcut(x) if self.stride == 1 else y
        return result


class MobileNetV2(nn.Module):
    """pytorch-cifar's MobileNetV2 with eight of its blocks, from half of the image's size on."""

    BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 2, 2), (6, 64, 2, 2), (6, 96, 1, 1))
    """Expansion, width, blocks, and stride of the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        layers, channels = [], 32
        for expansion, width, count, stride in self.BLOCKS:
            for number in range(count):
                layers.append(Inverted(channels, width, expansion, 1 if number else stride))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.conv2, self.bn2 = nn.Conv2d(channels, 384, 1, bias=False), nn.BatchNorm2d(384)
        self.linear = nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x: [N, 3, 32, 32] float32`` to logits ``[N, 10] float32``."""
        x = F.relu(self.bn2(self.conv2(self.layers(F.relu(self.bn1(self.conv1(x)))))))
        result: Tensor = self.linear(x.mean((2, 3)))
        return result


class CausalBlock(nn.Module):
    """A block of a transformer in which a token sees those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.l1, self.l2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens ``x: [N, T, width] float32`` to as many."""
        n, t, c = x.shape
        q, k, v = (
            part.view(n, t, self.heads, c // self.heads).transpose(1, 2) for part in self.attn(self.l1(x)).split(c, 2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, t, c)
        x = x + self.proj(attended)
        result: Tensor = x + self.out(F.gelu(self.fc(self.l2(x))))
        return result


class GPT(nn.Module):
    """A language model of characters as nanoGPT has it: three blocks of width 128, with its first weights."""

    def __init__(self, characters: int, width: int = 128, depth: int = 3, length: int = 64) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(characters, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(CausalBlock(width, 4) for _ in range(depth))
        self.ln, self.head, self.length = nn.LayerNorm(width), nn.Linear(width, characters, bias=False), length
        self.apply(_small_weights)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if name.endswith(("proj.weight", "out.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``tokens: [N, T] int64`` to logits of the next ones, ``[N, T, characters] float32``."""
        x = self.wte(tokens) + self.wpe(torch.arange(self.length))
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.ln(x))
        return result


def _small_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def contrastive_loss(z: Tensor, _: Any) -> Tensor:
    """SimCLR's loss of ``z: [2 N, D] float32``, two views of N images, at a temperature of 0.5."""
    n = z.shape[0] // 2
    z = F.normalize(z, dim=1)
    similarity = (z @ z.t() / 0.5).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
    return F.cross_entropy(similarity, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every token, in nats."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def _view(images: Array, rng: np.random.Generator) -> Tensor:
    """Random crops of ``images: [N, 3, 32, 32] uint8``, mirrored, with other contrast and brightness, or gray."""
    n, x = len(images), torch.from_numpy(images.astype(np.float32) / 255)
    size, mirrored = np.sqrt(rng.uniform(0.3, 1.0, n)), rng.choice([-1, 1], n)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1] = size * mirrored, size
    theta[:, 0, 2], theta[:, 1, 2] = rng.uniform(-(1 - size), 1 - size), rng.uniform(-(1 - size), 1 - size)
    grid = F.affine_grid(torch.from_numpy(theta), [n, 3, 32, 32], align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    contrast = torch.from_numpy(rng.uniform(0.6, 1.4, (n, 3, 1, 1)).astype(np.float32))
    x = x * contrast + torch.from_numpy(rng.uniform(-0.2, 0.2, (n, 1, 1, 1)).astype(np.float32))
    gray = torch.from_numpy(rng.random((n, 1, 1, 1)) < 0.2)
    return (torch.where(gray, x.mean(1, keepdim=True).expand_as(x), x) - 0.47) / 0.25


def _pairs_of_views(data: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
    images = data.train_x[:IMAGES]
    while True:
        chosen = images[rng.integers(0, len(images), 64)]
        yield torch.cat([_view(chosen, rng), _view(chosen, rng)]), None


def _noisy_images(data: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
    images = data.train_x[:IMAGES]
    images = images.reshape(len(images), 3, 16, 2, 16, 2).mean((3, 5)) / 127.5 - 1
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    while True:
        x = torch.from_numpy(images[rng.integers(0, len(images), 32)].astype(np.float32))
        t = rng.integers(0, 1000, 32)
        share = torch.from_numpy(kept[t].astype(np.float32))[:, None, None, None]
        noise = torch.from_numpy(rng.standard_normal(x.shape).astype(np.float32))
        yield (share.sqrt() * x + (1 - share).sqrt() * noise, torch.from_numpy(t.astype(np.float32))), noise


def _labelled_images(data: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
    images, labels = data.train_x[:IMAGES], data.train_y[:IMAGES]
    while True:
        index = rng.integers(0, len(images), 64)
        moved = np.pad(images[index], ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
        batch = np.empty_like(images[index])
        for i, image in enumerate(moved):
            top, left = rng.integers(0, 9, 2)
            window = image[:, top : top + 32, left : left + 32]
            batch[i] = window[:, :, ::-1] if rng.random() < 0.5 else window
        yield torch.from_numpy((batch.astype(np.float32) - 120) / 64), torch.from_numpy(labels[index])


@lru_cache(maxsize=1)
def _text() -> tuple[Array, dict[str, int]]:
    """Python's reference manual by characters, [n] int64, and their numbers; those beyond ASCII are one."""
    text = "".join(character if ord(character) < 127 else "?" for name in sorted(topics) for character in topics[name])
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    return _numbered(text, numbers), numbers


@lru_cache(maxsize=1)
def _code() -> Array:
    """The first modules of Python's library by the manual's characters, [n] int64."""
    files = sorted(Path(json.__file__).parents[1].glob("*.py"))[:120]
    return _numbered("".join(file.read_text(errors="replace") for file in files), _text()[1])


def _numbered(text: str, numbers: Mapping[str, int]) -> Array:
    return np.array([numbers.get(character, numbers["?"]) for character in text], np.int64)


def _pieces(text: Array, rng: np.random.Generator, length: int = 64) -> Iterator[Batch]:
    while True:
        starts = rng.integers(0, len(text) - length - 1, 32)
        rows = np.stack([text[start : start + length + 1] for start in starts])
        yield torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())


def _pieces_of_text(_: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
    return _pieces(_text()[0], rng)


def _pieces_of_code(_: Dataset, rng: np.random.Generator) -> Iterator[Batch]:
    return _pieces(_code(), rng)


def _gpt() -> GPT:
    return GPT(len(_text()[1]))


SCRIPTS: dict[str, Script] = {
    "resnet": Script(
        lambda: ResNet(lambda: nn.Linear(128, 10)), F.cross_entropy, _labelled_images, 2e-3, 400
    ),
    "simclr": Script(
        lambda: ResNet(lambda: nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))),
        contrastive_loss, _pairs_of_views, 1e-3, 300,
    ),
    "unet": Script(UNet, F.mse_loss, _noisy_images, 1e-3, 500),
    "mobilenet": Script(MobileNetV2, F.cross_entropy, _labelled_images, 3e-3, 300),
    "gpt": Script(_gpt, token_loss, _pieces_of_text, 1e-3, 500),
    "gpt-code": Script(_gpt, token_loss, _pieces_of_code, 1e-3, 300, Pretraining(_pieces_of_text, 3e-3, 1500)),
}  # fmt: skip
"""By name."""


def load_images(path: Path) -> Dataset:
    """CIFAR-10, decoded once."""
    return load_dataset(str(path), Path("build/accuracy"))
