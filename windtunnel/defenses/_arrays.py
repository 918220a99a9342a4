"""What every defense needs on its way in and out: the contract on images, the 8-bit grid, one picture at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from windtunnel.defenses.base import Images


def require_images(images: Images) -> Images:
    """The images in C order: [N, 3, H, W] float32 in [0, 1], or a ValueError that says what is wrong.

    NaN is refused: no codec can hold it. One memory order, so that a result does not depend on how an array was
    sliced.
    """
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.float32:
        found = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"a defense takes float32 [N, 3, H, W], not {found}")
    if images.size and not (images.min() >= 0.0 and images.max() <= 1.0):
        raise ValueError("a defense takes images in [0, 1]; these leave the range or hold NaN")
    return np.ascontiguousarray(images)


def to_8bit(images: Images) -> np.ndarray:
    """[N, H, W, 3] uint8: ``x * 255`` rounded to the nearest integer, half to even. Exact on images k/255."""
    return np.ascontiguousarray(np.rint(images * np.float32(255.0)).astype(np.uint8).transpose(0, 2, 3, 1))


def from_8bit(pictures: np.ndarray) -> Images:
    """[N, 3, H, W] float32, the values k/255 rounded to float32, from [N, H, W, 3] uint8."""
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255.0)


def each(images: Images, denoise: Callable[[np.ndarray], np.ndarray]) -> Images:
    """A denoiser of one [H, W, 3] float32 picture on every row: float32, clipped to [0, 1], not rounded to 8 bits."""
    images = require_images(images)
    result = np.empty(images.shape, dtype=np.float32)
    for row, picture in enumerate(np.ascontiguousarray(images.transpose(0, 2, 3, 1))):
        result[row] = denoise(picture).astype(np.float32).transpose(2, 0, 1)
    return np.clip(result, 0.0, 1.0, out=result)


@lru_cache(maxsize=64)
def smoothing_matrix(sigma: float, size: int, truncate: float) -> np.ndarray:
    """[size, size] float32: row i holds the weights by which a Gaussian filter of a line, mirrored at its ends, makes
    output i.

    Filtering a picture is then ``A x A^T``: one map for filter and gradient, and ten times faster than a convolution.
    """
    from scipy.ndimage import gaussian_filter1d

    matrix = gaussian_filter1d(np.eye(size), sigma, axis=0, truncate=truncate, mode="mirror").astype(np.float32)
    matrix.setflags(write=False)
    return matrix
