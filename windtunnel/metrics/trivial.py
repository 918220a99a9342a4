"""Statistics of a picture that know nothing of what it shows: what separates two image sets before any model looks.

An out-of-distribution set that one of these separates from the ID set measures little of a score: noise has all the
range there is, grey faces have no saturation. Tables of scores print the best of them as a row of their own.
"""

from __future__ import annotations

import numpy as np

STATISTICS = ("range", "saturation", "total_variation")


def trivial_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """``{name: [N] float64}`` of uint8 images [N, H, W, 3], each in [0, 1].

    - ``range``: largest minus smallest value over all pixels and channels.
    - ``saturation``: mean over pixels of (largest - smallest channel) / largest channel (the S of HSV; 0 for black).
    - ``total_variation``: mean absolute difference of neighbours, over both directions and all channels.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"uint8 images [N, H, W, 3] are needed, not {images.dtype} of shape {images.shape}")
    if min(images.shape[1:3]) < 2:
        raise ValueError(f"images of at least 2x2 pixels are needed, not {images.shape[1]}x{images.shape[2]}")
    x = images.astype(np.int16)
    high, low = x.max(axis=3), x.min(axis=3)
    saturation = np.divide(high - low, high, out=np.zeros(high.shape), where=high > 0).mean(axis=(1, 2))
    down, right = np.abs(np.diff(x, axis=1)), np.abs(np.diff(x, axis=2))
    steps = down.sum(axis=(1, 2, 3), dtype=np.int64) + right.sum(axis=(1, 2, 3), dtype=np.int64)
    pairs = down[0].size + right[0].size if len(x) else 1
    return {
        "range": (high.max(axis=(1, 2)) - low.min(axis=(1, 2))) / 255.0,
        "saturation": saturation,
        "total_variation": steps / (255.0 * pairs),
    }
