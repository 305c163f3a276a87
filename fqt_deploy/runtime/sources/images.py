"""Decoding of images; needs Pillow, which the extra ``images`` installs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from fqt_deploy.runtime.sources.source import Array, missing_package, unusable

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""The endings of image files, in lower case."""


def require_pillow(path: Path) -> None:
    """FQT510 unless images can be decoded."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise missing_package(path, "Pillow, which decodes images,", "images") from None


def decoded(content: bytes, name: str, shape: tuple[int, ...]) -> Array:
    """An image as uint8 [channels, height, width].

    One of another size is scaled so that it covers ``shape``, and cut at its middle.

    Args:
        content: the bytes of an image file.
        name: where they are from, for messages.
        shape: channels (1 for grey, 3 for RGB), height and width.

    Raises:
        FqtError: FQT510 if it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unusable(name, f"it is no image, or damaged: {error}") from None
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)
