"""AVIF: the AV1 still-picture codec of Pillow (libavif)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from windtunnel.defenses._codec import CodecDefense, file_bytes, require_range


@dataclass(frozen=True, kw_only=True)
class Avif(CodecDefense):
    """AVIF at one quality.

    Format: AV1 Image File Format, https://aomediacodec.github.io/av1-avif/. As a purifier it stands in the line of
    Guo et al., Countering Adversarial Images using Input Transformations, https://arxiv.org/abs/1711.00117 (there
    JPEG).

    ``quality`` 0 to 100, higher = larger file; not comparable with JPEG's. ``subsampling`` '4:4:4' here, where
    Pillow's default is '4:2:0': on small pictures halved chroma is a second, unasked defense. ``speed`` 0 (slow) to
    10, 6 is Pillow's default. One thread, so that the file does not depend on the machine's cores. Input rounded to 8
    bits (half to even), output k/255, bits counted (see ``CodecDefense``). All backward rules are generic.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ("pillow",)
    pillow_feature: ClassVar[str] = "avif"

    quality: int
    subsampling: str = "4:4:4"
    speed: int = 6

    def __post_init__(self) -> None:
        require_range("quality", self.quality, 0, 100)
        require_range("speed", self.speed, 0, 10)
        if self.subsampling not in ("4:4:4", "4:2:2", "4:2:0"):
            raise ValueError(f"subsampling must be '4:4:4', '4:2:2' or '4:2:0', not '{self.subsampling}'")

    def encode(self, picture: Image.Image) -> bytes:
        return file_bytes(
            picture,
            format="AVIF",
            quality=self.quality,
            subsampling=self.subsampling,
            speed=self.speed,
            max_threads=1,
        )
