"""WebP: the lossy VP8 codec of Pillow (libwebp)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from windtunnel.defenses._codec import CodecDefense, file_bytes, require_range


@dataclass(frozen=True, kw_only=True)
class WebP(CodecDefense):
    """Lossy WebP at one quality.

    Format: RFC 9649 (WebP Image Format), https://www.rfc-editor.org/rfc/rfc9649. As a purifier it stands in the line
    of Guo et al., Countering Adversarial Images using Input Transformations, https://arxiv.org/abs/1711.00117 (there
    JPEG).

    ``quality`` 0 to 100, higher = larger file; not comparable with JPEG's. ``effort`` is libwebp's ``method`` 0 to 6
    (4 is Pillow's default). Chroma is always 4:2:0: the format has no other lossy mode. Input rounded to 8 bits (half
    to even), output k/255, bits counted (see ``CodecDefense``). Predictions across blocks and a loop filter make it
    no shift of JPEG: it has no differentiable form here, all rules are generic.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ("pillow",)
    pillow_feature: ClassVar[str] = "webp"

    quality: int
    effort: int = 4

    def __post_init__(self) -> None:
        require_range("quality", self.quality, 0, 100)
        require_range("effort", self.effort, 0, 6)

    def encode(self, picture: Image.Image) -> bytes:
        return file_bytes(picture, format="WEBP", quality=self.quality, method=self.effort, lossless=False)
