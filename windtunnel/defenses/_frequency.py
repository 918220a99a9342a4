"""Radial filters in the cosine domain: what the low-pass and the high-pass share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Images, Purified

if TYPE_CHECKING:
    import torch

SHAPES = ("butterworth", "ideal")


@lru_cache(maxsize=64)
def cosine_basis(size: int) -> np.ndarray:
    """[size, size] float64 orthonormal DCT-II: row k is the wave of k / size of the Nyquist frequency.

    The cosine transform rather than Fourier's: it is that of a picture mirrored at its border, so that the left edge
    does not leak into the right one, and it is real.
    """
    from scipy.fft import dct

    basis = dct(np.eye(size), axis=0, norm="ortho")
    basis.setflags(write=False)
    return basis


@lru_cache(maxsize=64)
def passed(height: int, width: int, cutoff: float, shape: str, order: int) -> np.ndarray:
    """[height, width] float64 in [0, 1]: how much of each wave a low-pass lets through.

    A wave's radius is ``r = sqrt((k / height)^2 + (l / width)^2)``: 1 is the Nyquist frequency along an axis, the
    corner is near 1.41. ``ideal``: 1 where r <= cutoff, else 0. ``butterworth``: ``1 / (1 + (r / cutoff)^(2 order))``.
    """
    radius = np.hypot(*np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij"))
    gains = 1.0 / (1.0 + (radius / cutoff) ** (2 * order)) if shape == "butterworth" else (radius <= cutoff) * 1.0
    gains.setflags(write=False)
    return gains


def filtered(images: Images, gains_of: Callable[[int, int], np.ndarray]) -> Purified:
    """Each channel alone: ``C_H^T (gains * (C_H x C_W^T)) C_W``, clipped to [0, 1], float32.

    ``gains_of(height, width)`` [height, width]: what is left of each wave.
    """
    images = require_images(images)
    rows, columns = (cosine_basis(size).astype(np.float32) for size in images.shape[2:])
    shares = gains_of(*images.shape[2:]).astype(np.float32)
    result = np.empty(images.shape, dtype=np.float32)
    for row, image in enumerate(images):  # one by one: a batched product may round differently per batch size
        result[row] = rows.T @ (shares * (rows @ image @ columns.T)) @ columns
    return Purified(np.clip(result, 0.0, 1.0, out=result))


def require_filter(cutoff: float, shape: str, order: int) -> None:
    """Settings of a radial filter, or a ValueError that names the wrong one."""
    require_range("cutoff", cutoff, 0.01, 1.42)
    require_range("order", order, 1, 16)
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not '{shape}'")


def filter_rule(gains_of: Callable[[int, int], np.ndarray], rounds: int) -> BackwardRule:
    """The filter ``rounds`` times, as one linear map without the clipping; ``gains_of(height, width)`` are those of
    one round.

    The map is symmetric, so its gradient is itself. Clipping is left out: it would only take the direction from pixels
    at the border of the box.
    """
    from windtunnel.backend import torch

    def rule(x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        rows, columns, shares = (
            torch.tensor(a).to(x)
            for a in (cosine_basis(height), cosine_basis(width), gains_of(height, width) ** rounds)
        )
        return rows.T @ (shares * (rows @ x @ columns.T)) @ columns

    return rule
