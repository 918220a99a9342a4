"""High-pass: fine waves stay, coarse ones go, but not the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._frequency import filter_rule, filtered, passed, require_filter
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified


@dataclass(frozen=True, kw_only=True)
class HighPass(Defense):
    """Radial high-pass in the cosine domain (DCT-II of the whole picture), each channel alone, around its own mean.

    Paper: Yin et al., A Fourier Perspective on Model Robustness in Computer Vision, https://arxiv.org/abs/1906.08988.
    The complement of ``lowpass`` at the same settings: a wave keeps one minus what the low-pass lets through (half at
    the cut-off ``cutoff``, a share of the Nyquist frequency). Wave 0, the channel's mean, is kept whole, so that the
    picture stays around where it was and in [0, 1] but for what is clipped there. ``lowpass(x) + highpass(x) = x +
    mean(x)``, clipping apart.

    As a defense it keeps just what perturbations are made of; it is here as the counterpart by which to judge the
    low-pass. ``shape`` and ``order`` as there. Output is float32 clipped to [0, 1], not rounded to 8 bits. No file,
    hence no bits.

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
        gains = 1.0 - passed(height, width, self.cutoff, self.shape, self.order)
        gains[0, 0] = 1.0
        return gains

    def purify(self, images: Images) -> Purified:
        return filtered(images, self.gains)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import with_generic

        return with_generic(self.rules, exact=filter_rule(self.gains, rounds))
