"""PSNR and SSIM against scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from windtunnel.metrics.quality import bits_per_pixel, psnr, ssim


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    photograph = data.astronaut()
    crops = np.stack([photograph[y : y + 24, x : x + 40] for y, x in ((0, 0), (100, 200), (300, 64), (200, 128))])
    clean = crops.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    noise = np.random.default_rng(3).normal(0, (0.01, 0.05, 0.2, 0.5), size=(3, 24, 40, 4)).transpose(3, 0, 1, 2)
    return clean, np.clip(clean + noise, 0, 1).astype(np.float32)


def test_psnr_equals_scikit_image(pairs):
    clean, noisy = pairs
    wanted = [
        peak_signal_noise_ratio(a.astype(np.float64), b.astype(np.float64), data_range=1.0)
        for a, b in zip(clean, noisy, strict=True)
    ]
    np.testing.assert_allclose(psnr(clean, noisy), wanted, rtol=1e-12)
    assert np.all(np.diff(psnr(clean, noisy)) < 0), "more noise, fewer dB"


def test_psnr_of_a_constant_step_is_its_closed_form():
    black = np.zeros((3, 3, 8, 8), dtype=np.float32)
    grey = np.stack([np.full((3, 8, 8), step, dtype=np.float32) for step in (1.0, 0.5, 0.0)])
    np.testing.assert_allclose(psnr(black, grey), [0.0, 20 * np.log10(2), np.inf])


def test_ssim_equals_scikit_image(pairs):
    clean, noisy = pairs
    wanted = [
        structural_similarity(a.astype(np.float64), b.astype(np.float64), data_range=1.0, channel_axis=0)
        for a, b in zip(clean, noisy, strict=True)
    ]
    np.testing.assert_allclose(ssim(clean, noisy), wanted, atol=1e-10)
    np.testing.assert_allclose(ssim(clean, clean), 1.0, atol=1e-12)


def test_ssim_of_two_constants_is_the_luminance_term():
    a, b = (np.full((1, 3, 9, 9), v, dtype=np.float64) for v in (0.2, 0.6))
    np.testing.assert_allclose(ssim(a, b), (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_the_smallest_and_the_impossible(pairs):
    clean, noisy = pairs
    assert ssim(clean[:, :, :7, :7], noisy[:, :, :7, :7]).shape == (4,)
    with pytest.raises(ValueError, match="7x7"):
        ssim(clean[:, :, :6], noisy[:, :, :6])
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="equal shapes"):
            metric(clean, noisy[:2])
        assert np.array_equal(metric(clean, noisy)[2:], metric(clean[2:], noisy[2:])), "pictures are independent"


def test_bits_per_pixel_keeps_absence():
    pictures = np.zeros((2, 3, 16, 8), dtype=np.float32)
    assert bits_per_pixel(None, pictures) is None
    np.testing.assert_array_equal(bits_per_pixel(np.array([128, 0]), pictures), [1.0, 0.0])
