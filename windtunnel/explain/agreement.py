"""How far two maps of one image agree, row by row: overlap of the strongest places, and rank correlation."""

from __future__ import annotations

import numpy as np


def strongest(maps: np.ndarray, share: float) -> np.ndarray:
    """[N, h, w] bool: the round(share h w), at least one, largest places of each map [N, h, w].

    Places equal to the last of them belong to it too, and a place without evidence (0) never does; so the set has no
    luck in it, but may be larger or smaller than asked for. An all-zero map has none.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not {share}")
    flat = maps.reshape(len(maps), int(np.prod(maps.shape[1:])))
    count = max(1, round(share * flat.shape[1]))
    last = -np.sort(-flat, axis=1)[:, count - 1 : count]
    return ((flat >= last) & (flat > 0)).reshape(maps.shape)


def overlap(maps: np.ndarray, others: np.ndarray, share: float) -> np.ndarray:
    """[N] float64 in [0, 1]: intersection over union of the strongest places of two maps of each row.

    0 if only one of them has any evidence, NaN if neither has, or if either is not finite.
    """
    one, two = strongest(maps, share), strongest(others, share)
    both, any_of = (one & two).sum(axis=(1, 2)), (one | two).sum(axis=(1, 2))
    known = (any_of > 0) & np.isfinite(maps).all(axis=(1, 2)) & np.isfinite(others).all(axis=(1, 2))
    return np.where(known, both / np.maximum(any_of, 1), np.nan)


def rank_correlation(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] float64 in [-1, 1]: Spearman's rank correlation over the places of two maps [N, h, w], ties at mean ranks.

    NaN where a map is constant (all zero included) or not finite. Equal to ``scipy.stats.spearmanr`` of each pair.
    """
    from scipy.stats import rankdata  # slow to import, and only some jobs compare maps

    n = len(maps)
    known = np.isfinite(maps).all(axis=(1, 2)) & np.isfinite(others).all(axis=(1, 2))
    out = np.full(n, np.nan)
    if not known.any():
        return out
    a, b = (rankdata(values[known].reshape(int(known.sum()), -1), axis=1) for values in (maps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    out[known] = np.where(size > 0, (a * b).sum(axis=1) / np.where(size > 0, size, 1.0), np.nan)
    return out
