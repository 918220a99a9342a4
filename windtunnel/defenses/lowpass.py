"""Low-pass: coarse waves stay, fine ones go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._frequency import filter_rule, filtered, passed, require_filter
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified


@dataclass(frozen=True, kw_only=True)
class LowPass(Defense):
    """Radial low-pass in the cosine domain (DCT-II of the whole picture), each channel alone.

    Paper: Yin et al., A Fourier Perspective on Model Robustness in Computer Vision, https://arxiv.org/abs/1906.08988:
    perturbations against naturally trained models live in high frequencies. ``cutoff`` is a share of the Nyquist
    frequency; a wave at radius r keeps ``1 / (1 + (r / cutoff)^(2 order))`` of itself (``shape`` 'butterworth', half at
    the cut-off), or all of it where r <= cutoff and nothing elsewhere ('ideal', which rings at edges). The corners of
    the spectrum are at r = 1.41, so a cut-off of 1 still takes the finest diagonals. The mean is kept.

    The cosine transform instead of Fourier's, so that opposite borders do not leak into each other; ``order`` 4 is a
    choice of this library. Output is float32 clipped to [0, 1], not rounded to 8 bits. No file, hence no bits.

    Rule ``exact``: that linear map, ``rounds`` times, without the clipping.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("exact", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy", "scipy")

    cutoff: float
    shape: str = "butterworth"
    order: int = 4

    def __post_init__(self) -> None:
        require_filter(self.cutoff, self.shape, self.order)

    def gains(self, height: int, width: int) -> np.ndarray:
        """[height, width] float64: what is left of each wave after one round."""
        return passed(height, width, self.cutoff, self.shape, self.order)

    def purify(self, images: Images) -> Purified:
        return filtered(images, self.gains)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import with_generic

        return with_generic(self.rules, exact=filter_rule(self.gains, rounds))
