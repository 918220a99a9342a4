"""Wavelet shrinkage: small coefficients are noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.defenses._arrays import each
from windtunnel.defenses.base import Defense, Images, Purified


@dataclass(frozen=True, kw_only=True)
class Wavelet(Defense):
    """Soft wavelet shrinkage in YCbCr with BayesShrink thresholds (``skimage.restoration.denoise_wavelet``).

    Papers: Chang, Yu, Vetterli, Adaptive Wavelet Thresholding for Image Denoising and Compression,
    https://doi.org/10.1109/83.862633; as a defense in Prakash et al., Deflecting Adversarial Attacks with Pixel
    Deflection, https://arxiv.org/abs/1801.08926 (there after random pixel deflection, which is left out: this one is
    deterministic).

    No strength: the noise level of each channel is estimated from its own finest diagonal coefficients. Where that
    cannot be done (a channel without any diagonal detail, as in a pure gradient; scikit-image then returns NaN) the
    picture comes back as it was. Haar wavelet ``db1`` is scikit-image's default. Output is float32 clipped to [0, 1],
    not rounded to 8 bits. No file, hence no bits. All backward rules are generic.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur", "jpeg")
    libraries: ClassVar[tuple[str, ...]] = ("scikit-image", "PyWavelets")

    wavelet: str = "db1"

    def purify(self, images: Images) -> Purified:
        from skimage.restoration import denoise_wavelet

        def denoise(picture: np.ndarray) -> np.ndarray:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # the median of no coefficients, handled below
                cleaned = denoise_wavelet(
                    picture,
                    wavelet=self.wavelet,
                    method="BayesShrink",
                    mode="soft",
                    convert2ycbcr=True,
                    rescale_sigma=True,
                    channel_axis=-1,
                )
            return cleaned if np.isfinite(cleaned).all() else picture

        return Purified(each(images, denoise))
