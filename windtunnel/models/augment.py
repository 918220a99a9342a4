"""Label-preserving augmentation in integer arithmetic: handwriting that slants and turns a little.

Writers of the test block differ from those of the training block mostly in slant, and fresh composites vary colour,
size, place and background but never the glyph's shape. Every row is moved sideways, then every column up or down, by
whole pixels in proportion to its distance from the centre; two shears of opposite sign are nearly a rotation. Edges
are repeated.
"""

from __future__ import annotations

import numpy as np

# Slopes are multiples of 1/64, so that no floating point decides where a pixel goes.
UNIT = 64


def shear(images: np.ndarray, *, slope_64: int, seed: int, epoch: int) -> np.ndarray:
    """uint8 [N, H, W, C], each sheared along both axes by its own slopes in [-slope_64, slope_64] / 64."""
    if slope_64 == 0:
        return images
    draws = np.random.Generator(np.random.PCG64([seed, epoch, 0x5EA2]))
    slopes = draws.integers(-slope_64, slope_64 + 1, size=(2, len(images)))
    sheared = shift_lines(images, slopes[0])
    return shift_lines(sheared.transpose(0, 2, 1, 3), slopes[1]).transpose(0, 2, 1, 3)


def shift_lines(images: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Row r of image n moved right by ``slopes[n] (2 r - (H - 1)) / 128`` pixels, rounded to the nearest whole one."""
    height, width = images.shape[1:3]
    offsets = 2 * np.arange(height) - (height - 1)
    shift = (slopes[:, None] * offsets[None, :] + UNIT) // (2 * UNIT)
    columns = np.clip(np.arange(width)[None, None, :] - shift[:, :, None], 0, width - 1)
    return np.take_along_axis(images, columns[..., None], axis=2)
