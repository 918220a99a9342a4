"""Gaussian filter: a low-pass, and a linear one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images, smoothing_matrix
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified

TRUNCATE = 4.0


@dataclass(frozen=True, kw_only=True)
class Gaussian(Defense):
    """Gaussian filter of standard deviation ``sigma`` pixels, each channel alone.

    Paper: Xu, Evans, Qi, Feature Squeezing, https://arxiv.org/abs/1704.01155 (spatial smoothing). Computed as ``A_H x
    A_W^T``, where ``A`` is the matrix of ``scipy.ndimage.gaussian_filter1d(truncate=4, mode='mirror')``; a matrix
    makes filter and gradient the same map. Output is float32 in [0, 1], not rounded to 8 bits. No file, hence no
    bits.

    Rule ``own``: that very map, ``rounds`` times; it is linear, so its gradient is exact.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("own", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    sigma: float

    def __post_init__(self) -> None:
        require_range("sigma", self.sigma, 0.05, 16)

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        rows, columns = (smoothing_matrix(self.sigma, size, TRUNCATE) for size in images.shape[2:])
        result = np.empty(images.shape, dtype=np.float32)
        for row, image in enumerate(images):  # one by one: a batched product may round differently per batch size
            result[row] = rows @ image @ columns.T
        return Purified(np.clip(result, 0.0, 1.0, out=result))

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.backend import torch
        from windtunnel.defenses.rules import with_generic

        def own(x: torch.Tensor) -> torch.Tensor:
            rows, columns = (
                torch.tensor(np.linalg.matrix_power(smoothing_matrix(self.sigma, size, TRUNCATE), rounds)).to(x)
                for size in x.shape[2:]
            )
            return rows @ x @ columns.T

        return with_generic(self.rules, own=own)
