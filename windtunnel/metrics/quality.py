"""How far two sets of pictures are apart, picture by picture: PSNR and SSIM. Arrays in, one number per picture out."""

from __future__ import annotations

import numpy as np

WINDOW = 7
K1, K2 = 0.01, 0.03


def psnr(reference: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[N] float64 peak signal-to-noise ratio in dB, ``-10 log10(mean squared difference)``, for a pixel range of [0,
    1].

    Both arrays are [N, C, H, W] in [0, 1]. Higher = nearer; identical pictures give infinity. Equal to
    ``skimage.metrics.peak_signal_noise_ratio(data_range=1)`` of each pair.
    """
    a, b = _pair(reference, images)
    error = np.square(a - b).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return -10.0 * np.log10(error)


def ssim(reference: np.ndarray, images: np.ndarray) -> np.ndarray:
    """[N] float64 structural similarity, the mean over channels and over all whole 7x7 windows, pixel range [0, 1].

    Paper: Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment: From Error Visibility to Structural Similarity,
    https://doi.org/10.1109/TIP.2003.819861. ``((2 m_a m_b + C1)(2 s_ab + C2)) / ((m_a^2 + m_b^2 + C1)(s_a^2 + s_b^2 +
    C2))`` with ``C1 = .01^2``, ``C2 = .03^2`` and sample (n - 1) variances. The window is uniform, as in
    scikit-image's default, not the paper's 11x11 Gaussian, which leaves little of a 32-pixel picture. Both arrays are
    [N, C, H, W] with H, W >= 7; at most 1, which is reached by identical pictures. Equal to
    ``skimage.metrics.structural_similarity(data_range=1)``.
    """
    a, b = _pair(reference, images)
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f"ssim needs pictures of at least {WINDOW}x{WINDOW} pixels, not {a.shape[2]}x{a.shape[3]}")
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    variance_a = sample * (_window_mean(a * a) - mean_a * mean_a)
    variance_b = sample * (_window_mean(b * b) - mean_b * mean_b)
    covariance = sample * (_window_mean(a * b) - mean_a * mean_b)
    c1, c2 = K1**2, K2**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return (above / below).mean(axis=(1, 2, 3))


def bits_per_pixel(bits: np.ndarray | None, images: np.ndarray) -> np.ndarray | None:
    """[N] float64 bits per pixel of [N, C, H, W] pictures; None where a defense has no rate."""
    if bits is None:
        return None
    return bits.astype(np.float64) / (images.shape[2] * images.shape[3])


def _pair(reference: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if reference.ndim != 4 or reference.shape != images.shape:
        raise ValueError(f"two equal shapes [N, C, H, W] are needed, not {reference.shape} and {images.shape}")
    return reference.astype(np.float64), images.astype(np.float64)


def _window_mean(x: np.ndarray) -> np.ndarray:
    """Mean over every whole 7x7 window: [N, C, H - 6, W - 6]."""
    from scipy.ndimage import uniform_filter1d  # 0.2 s that jobs without pictures to compare need not pay

    margin = WINDOW // 2
    inside = slice(margin, -margin)
    return uniform_filter1d(uniform_filter1d(x, WINDOW, axis=2), WINDOW, axis=3)[:, :, inside, inside]
