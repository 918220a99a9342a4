"""What the real codecs share: 8-bit pictures through Pillow, one by one, with the bits that each file costs."""

from __future__ import annotations

import io
from abc import abstractmethod
from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image, features

from windtunnel.defenses._arrays import from_8bit, require_images, to_8bit
from windtunnel.defenses.base import Defense, Images, Purified

MID_GREY = 128


class MissingCodec(RuntimeError):
    """Pillow was built without a codec that a cell needs."""


class CodecDefense(Defense):
    """Encode to a file in memory, decode it, count its bits.

    Input is rounded to 8 bits (``x * 255``, half to even), output is k/255 in float32. ``file_bits`` is the file's
    size in bits; ``payload_bits`` is that minus the size of a constant mid-grey (128) picture of the same shape at
    equal settings, never below 0: at 32x32 nine tenths of a JPEG file are tables and markers that say nothing of the
    picture.
    """

    pillow_feature: ClassVar[str] = ""

    @abstractmethod
    def encode(self, picture: Image.Image) -> bytes:
        """One RGB picture as a file."""

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        require_codec(self.pillow_feature)
        pictures = to_8bit(images)
        decoded = np.empty_like(pictures)
        sizes = np.empty(len(pictures), dtype=np.int64)
        for row, picture in enumerate(pictures):
            file = self.encode(Image.fromarray(picture))
            sizes[row] = 8 * len(file)
            with Image.open(io.BytesIO(file)) as opened:
                decoded[row] = np.asarray(opened.convert("RGB"))
        container = container_bits(self, *pictures.shape[1:3]) if len(pictures) else 0
        return Purified(from_8bit(decoded), file_bits=sizes, payload_bits=np.maximum(sizes - container, 0))


@lru_cache(maxsize=256)
def container_bits(codec: CodecDefense, height: int, width: int) -> int:
    """Bits of a constant mid-grey picture: what the container costs at these settings and this shape."""
    return 8 * len(codec.encode(Image.new("RGB", (width, height), (MID_GREY,) * 3)))


@lru_cache
def require_codec(feature: str) -> None:
    """Pillow's wheels hold all four codecs from 11.3.0; distribution and conda builds may lack some."""
    if not features.check(feature):
        raise MissingCodec(
            f"this Pillow was built without '{feature}', which a defense needs; "
            f"install Pillow 11.3 or newer from PyPI (its wheels hold jpg, webp, avif and jpg_2000)"
        )


def file_bytes(picture: Image.Image, **settings: object) -> bytes:
    """``picture.save`` into memory."""
    buffer = io.BytesIO()
    picture.save(buffer, **settings)
    return buffer.getvalue()


def require_range(name: str, value: float, low: float, high: float) -> None:
    """A setting inside its closed range, or a ValueError that names it."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], not {value}")
