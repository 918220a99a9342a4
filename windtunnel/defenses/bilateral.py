"""Bilateral filter: a Gaussian filter that does not look across edges."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Bilateral(Defense):
    """Bilateral filter on colour distance, the picture mirrored at its border (edge not repeated).

    Paper: Tomasi, Manduchi, Bilateral Filtering for Gray and Color Images, https://doi.org/10.1109/ICCV.1998.710815;
    as a defense in Xie et al., Feature Denoising for Improving Adversarial Robustness,
    https://arxiv.org/abs/1812.03411 (there inside the network). A neighbour at ``d`` pixels whose colour is ``c``
    away (Euclidean over the three channels) weighs ``exp(-d^2 / (2 sigma_space^2) - c^2 / (2 sigma_color^2))`` in a
    window of ``2 ceil(3 sigma_space) + 1``, at least 5.

    Written out here, not taken from scikit-image: its ``denoise_bilateral`` (0.26) builds an even-sized table of
    spatial weights and reads it with an odd stride, so that an impulse spreads off-centre, and divides ``c`` by the
    number of channels. Output is float32 in [0, 1] (a mean of members), not rounded to 8 bits. No file, hence no
    bits.

    Rule ``own``: the same formula in torch, ``rounds`` times; the weights are differentiated too.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("own", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    sigma_color: float
    sigma_space: float = 1.0

    def __post_init__(self) -> None:
        require_range("sigma_color", self.sigma_color, 1e-4, 10)
        require_range("sigma_space", self.sigma_space, 0.1, 5)

    @property
    def radius(self) -> int:
        return max(2, ceil(3 * self.sigma_space))

    @property
    def closeness(self) -> np.ndarray:
        """[k * k] float32: the exponent's part that depends on the place in the window."""
        steps = np.arange(-self.radius, self.radius + 1, dtype=np.float32)
        return (-(steps[:, None] ** 2 + steps[None, :] ** 2) / np.float32(2 * self.sigma_space**2)).reshape(-1)

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        r, size = self.radius, 2 * self.radius + 1
        closeness = self.closeness.reshape(size, size)[..., None, None]
        padded = np.pad(images, ((0, 0), (0, 0), (r, r), (r, r)), mode="reflect")
        result = np.empty(images.shape, dtype=np.float32)
        height, width = images.shape[2:]
        for row, image in enumerate(images):
            view = np.lib.stride_tricks.sliding_window_view(padded[row], (height, width), axis=(1, 2))
            colour = np.square(view - image[:, None, None]).sum(axis=0)  # [k, k, H, W], as are the weights
            weights = np.exp(closeness - colour / np.float32(2 * self.sigma_color**2))
            result[row] = (weights * view).sum(axis=(1, 2)) / weights.sum(axis=(0, 1))
        return Purified(np.clip(result, 0.0, 1.0, out=result))

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import repeated, with_generic

        return with_generic(self.rules, own=repeated(self._bilateral, rounds))

    def _bilateral(self, x: torch.Tensor) -> torch.Tensor:
        from windtunnel.backend import torch
        from windtunnel.defenses.rules import shifts

        total, mass = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for neighbour, closeness in zip(shifts(x, self.radius), self.closeness.tolist(), strict=True):
            colour = (neighbour - x).square().sum(dim=1, keepdim=True)
            weight = torch.exp(closeness - colour / (2 * self.sigma_color**2))
            total, mass = total + weight * neighbour, mass + weight
        return total / mass
