"""What the real codecs share: 8-bit pictures through Pillow, one by one, with the bits that each file costs."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image, features

from windtunnel.defenses._arrays import from_8bit, require_images, to_8bit
from windtunnel.defenses.base import Defense, Images, Purified

MID_GREY = 128
LIBRARIES = {"jpg": "libjpeg", "webp": "libwebp", "avif": "libavif", "jpg_2000": "openjpeg"}
"""Pillow's name of each codec feature, and the library behind it."""


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


def missing_codec(feature: str) -> str | None:
    """Why a defense that needs this feature of Pillow (``pillow_feature``) cannot run here, as a sentence; None where
    it can. Pillow's wheels hold all four codecs from 11.3.0; distribution and conda builds may lack some."""
    if features.check(feature):
        return None
    return (
        f"this Pillow was built without '{feature}', which a defense needs; "
        f"install Pillow 11.3 or newer from PyPI (its wheels hold jpg, webp, avif and jpg_2000)"
    )


@lru_cache
def require_codec(feature: str) -> None:
    """Raise ``MissingCodec`` with the sentence of ``missing_codec``, where there is one."""
    reason = missing_codec(feature)
    if reason is not None:
        raise MissingCodec(reason)


def codec_versions(pillow_features: Sequence[str]) -> dict[str, str | None]:
    """The libraries that really code a picture, by name, with their versions; None for one that is not built in.

    Pillow's own version does not tell them: a distribution links its own, and the bytes of a file, hence the decoded
    pixels and the bits, are theirs. ``pillow_features`` are 'jpg', 'webp', 'avif' and 'jpg_2000'. libavif only wraps
    AV1 coders, so theirs are listed too ('av1', as libavif names them). Cheap, imports no torch.
    """
    found: dict[str, str | None] = {}
    for feature in pillow_features:
        if feature not in LIBRARIES:
            raise ValueError(f"no codec library is known for '{feature}'; known: {', '.join(LIBRARIES)}")
        library = LIBRARIES[feature]
        if feature == "jpg" and features.check("libjpeg_turbo"):
            # 'jpg' itself answers with the ABI it emulates (6.2), whatever turbo or mozjpeg lies beneath
            library = "mozjpeg" if features.check("mozjpeg") else "libjpeg-turbo"
            found[library] = features.version("libjpeg_turbo")
        else:
            found[library] = features.version(feature) if features.check(feature) else None
        if feature == "avif":
            found["av1"] = _av1_coders() if found[library] is not None else None
    return dict(sorted(found.items()))


def _av1_coders() -> str | None:
    """Names and versions of libavif's coders, as one string; None where Pillow does not tell."""
    from PIL import _avif

    asked = getattr(_avif, "codec_versions", None)
    return asked() if asked else None


def file_bytes(picture: Image.Image, **settings: object) -> bytes:
    """``picture.save`` into memory."""
    buffer = io.BytesIO()
    picture.save(buffer, **settings)
    return buffer.getvalue()


def require_range(name: str, value: float, low: float, high: float) -> None:
    """A setting inside its closed range, or a ValueError that names it."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], not {value}")
