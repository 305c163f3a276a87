"""Tasks to train on: source classes to pretrain on, target classes to fine-tune on, and what is held out of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.accuracy.data import Dataset
from tools.training import Array

PHASES = ("pretrain", "transfer", "scratch")
"""The phases: ``pretrain`` on the source classes; ``transfer``: the target classes, from pretrained weights;
``scratch``: the target classes, from random weights.
"""
VALIDATION = 0.1
"""Share of the training images of a class that is held out for choices."""
STATISTICS = 5000
SHIFT = 4
"""Upper bound of the pixels by which an image moves: an eighth of CIFAR's."""


@dataclass(frozen=True)
class Part:
    """The images ``x: [n, C, H, W] uint8`` of a part and their labels ``y: [n] int64``, from 0 on."""

    x: Array
    y: Array


@dataclass(frozen=True)
class Task:
    """One training task.

    Attributes:
        train: the part that is trained on.
        val: held out of the training images; every choice is made on it.
        test: reported, never looked at for a choice.
        classes: how many.
        mean: of each channel ``[C, 1, 1] float32``, over the first ``STATISTICS`` training images of the data set.
        std: standard deviation, likewise.
        mirrored: whether training mirrors images at random.
    """

    train: Part
    val: Part
    test: Part
    classes: int
    mean: Array
    std: Array
    mirrored: bool = True

    def normalized(self, x: Array) -> Array:
        """Images ``[n, C, H, W] uint8`` as ``float32`` of about zero mean and unit variance."""
        result: Array = np.ascontiguousarray((x.astype(np.float32) - self.mean) / self.std)
        return result

    def augmented(self, index: Array, seed: tuple[int, int]) -> tuple[Array, Array]:
        """One batch of training images ``index: [n]``, normalized, each moved and perhaps mirrored at random.

        What an image moves away from becomes the mean. ``seed`` alone decides the random numbers, so a batch does not
        depend on the ones before it.
        """
        x, y = self.train.x[index], self.train.y[index]
        height, width = x.shape[2:]
        shift = SHIFT * height // 32
        images = self.normalized(x)
        padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
        generator = np.random.default_rng(seed)
        corners = generator.integers(0, 2 * shift + 1, (len(x), 2))
        mirror = generator.integers(0, 2, len(x)).astype(bool) & self.mirrored
        for i, (row, column) in enumerate(corners):
            image = padded[i, :, row : row + height, column : column + width]
            images[i] = image[:, :, ::-1] if mirror[i] else image
        return images, y


def make_task(data: Dataset, phase: str, train_images: int | None = None, *, mirrored: bool = True) -> Task:
    """The task of ``phase``: the first half of the classes is the source, the second half the target.

    Args:
        data: images and labels.
        phase: one of ``PHASES``.
        train_images: how many training images to use, of all classes together, as many of each; None for all.
        mirrored: whether training mirrors images at random; digits, for example, must not be.
    """
    half = data.classes // 2
    labels = range(half) if phase == "pretrain" else range(half, data.classes)
    train, val = [], []
    for label in labels:
        index = np.flatnonzero(data.train_y == label)
        held_out = int(VALIDATION * len(index))
        val.append(index[:held_out])
        rest = index[held_out:]
        train.append(rest if train_images is None else rest[: train_images // len(labels)])
    test = np.flatnonzero(np.isin(data.test_y, labels))
    sample, axes = data.train_x[:STATISTICS].astype(np.float32), (0, 2, 3)
    return Task(
        train=_part(data.train_x, data.train_y, np.sort(np.concatenate(train)), labels),
        val=_part(data.train_x, data.train_y, np.sort(np.concatenate(val)), labels),
        test=_part(data.test_x, data.test_y, test, labels),
        classes=len(labels),
        mean=sample.mean(axes)[:, None, None],
        std=sample.std(axes)[:, None, None],
        mirrored=mirrored,
    )


def _part(x: Array, y: Array, index: Array, labels: range) -> Part:
    return Part(x[index], y[index] - labels.start)
