"""Median filter: what most of a neighbourhood agrees on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Median(Defense):
    """Median over a ``size`` x ``size`` window, each channel alone, the picture mirrored at its border (edge not
    repeated).

    Paper: Xu, Evans, Qi, Feature Squeezing, https://arxiv.org/abs/1704.01155 (local smoothing; ``size`` 3 is the
    setting used most there after 2). ``size`` is odd. Equal to ``scipy.ndimage.median_filter(mode='mirror')``. Output
    is float32; 8-bit values stay 8-bit, since a median of an odd window is one of its members. No file, hence no
    bits.

    Rule ``own``: the same median in torch, ``rounds`` times; the gradient goes to the pixel that the median chose.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("own", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    size: int

    def __post_init__(self) -> None:
        require_range("size", self.size, 3, 15)
        if self.size % 2 == 0:
            raise ValueError(f"size must be odd, not {self.size}")

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        margin = self.size // 2
        padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
        result = np.empty(images.shape, dtype=np.float32)
        for row, image in enumerate(padded):
            windows = np.lib.stride_tricks.sliding_window_view(image, (self.size, self.size), axis=(1, 2))
            flat = windows.reshape(*windows.shape[:3], -1)
            result[row] = np.partition(flat, self.size**2 // 2, axis=-1)[..., self.size**2 // 2]
        return Purified(result)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import repeated, with_generic

        return with_generic(self.rules, own=repeated(self._median, rounds))

    def _median(self, x: torch.Tensor) -> torch.Tensor:
        from windtunnel.backend import torch
        from windtunnel.defenses.rules import shifts

        return torch.stack(shifts(x, self.size // 2)).median(dim=0).values
