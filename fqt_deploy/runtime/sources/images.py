"""Decoding of images; needs Pillow, which the extra ``images`` installs beside simplejpeg.

simplejpeg decodes a small JPEG in an eighth of Pillow's time. Both are libjpeg-turbo: the pixels are the same.
"""

from __future__ import annotations

import functools
import importlib
import io
from pathlib import Path
from types import ModuleType

import numpy as np

from fqt_deploy.runtime.sources.source import Array, missing_package, unusable

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""The endings of image files, in lower case."""

LARGEST = 1 << 26
"""Number of pixels of an image above which Pillow is asked, which warns of images that fill the memory."""


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
    pixels = _decoded_jpeg(content, channels)
    if pixels is not None and pixels.shape[:2] == (height, width):
        return pixels.transpose(2, 0, 1)
    try:
        if pixels is not None:
            image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        else:
            image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unusable(name, f"it is no image, or damaged: {error}") from None
    if image.size != (width, height):
        scale = max(width / image.width, height / image.height)
        size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        image = image.resize(size, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    result = np.asarray(image, dtype=np.uint8)
    return result[np.newaxis] if channels == 1 else result.transpose(2, 0, 1)


@functools.cache
def _simplejpeg() -> ModuleType | None:
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _decoded_jpeg(content: bytes, channels: int) -> Array | None:
    """The pixels of a JPEG, [height, width, channels] uint8; None where Pillow is to decode it.

    That is, where simplejpeg is not installed, for colours that are to become grey, which Pillow does by its own
    formula, for CMYK, and for what is damaged: Pillow says how.
    """
    decoder = _simplejpeg()
    if decoder is None or not content.startswith(b"\xff\xd8\xff"):
        return None
    wanted = ("GRAY", "Gray") if channels == 1 else ("RGB", "YCbCr")
    try:
        height, width, colours, _ = decoder.decode_jpeg_header(content)
        if colours != wanted[1] or height * width > LARGEST:
            return None
        pixels: Array = decoder.decode_jpeg(content, colorspace=wanted[0])
    except ValueError:
        return None
    return pixels
