"""Synthetic textures in integer arithmetic: eight families, each a field in 0..255 that mixes two random colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from windtunnel.images import compose
from windtunnel.images.keyed import Draws

# Directions with whole-number steps; the period below is multiplied by the step's length times eight.
_DIRECTIONS = np.array([(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (1, 2), (2, -1), (1, -2), (3, 1), (1, 3), (3, -2)])
_LENGTHS_8 = np.array([8, 8, 11, 11, 18, 18, 18, 18, 25, 25, 29])


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(side, dtype=np.int64)
    return place[None, :, None], place[None, None, :]


def _directed(draws: Draws, side: int, shortest: int, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two perpendicular coordinates and a period, in eighths of a step along the direction, for [N, S, S]."""
    which = draws.integers(0, len(_DIRECTIONS))
    (a, b), y, x = _DIRECTIONS[which].T[:, :, None, None], *_grid(side)
    phase = draws.integers(0, 4096, 2)[..., None, None]
    period = (draws.integers(shortest, longest + 1) * _LENGTHS_8[which])[:, None, None]
    return 8 * (a * x + b * y) + phase[:, 0], 8 * (a * y - b * x) + 16384 + phase[:, 1], period


def stripes(draws: Draws, side: int) -> np.ndarray:
    """Hard bars."""
    along, _, period = _directed(draws, side, 4, 14)
    return np.where((along % period) * 2 < period, 255, 0)


def waves(draws: Draws, side: int) -> np.ndarray:
    """Soft bars: a triangle wave."""
    along, _, period = _directed(draws, side, 6, 24)
    return np.abs(2 * (along % period) - period) * 255 // period


def checks(draws: Draws, side: int) -> np.ndarray:
    """A turned chequerboard."""
    along, across, period = _directed(draws, side, 3, 10)
    return (along // period + across // period) % 2 * 255


def dots(draws: Draws, side: int) -> np.ndarray:
    """Discs on a turned lattice."""
    along, across, period = _directed(draws, side, 5, 12)
    radius = draws.integers(25, 46)[:, None, None]  # per cent of the period
    squared = (along % period - period // 2) ** 2 + (across % period - period // 2) ** 2
    return np.where(squared * 10000 < (radius * period) ** 2, 255, 0)


def rings(draws: Draws, side: int) -> np.ndarray:
    """Rings of equal area around a random centre."""
    y, x = _grid(side)
    centre = draws.integers(-8, side + 8, 2)[..., None, None]
    squared = (y - centre[:, 0]) ** 2 + (x - centre[:, 1]) ** 2
    period = draws.integers(60, 400)[:, None, None]
    return np.abs(2 * (squared % period) - period) * 255 // period


def weave(draws: Draws, side: int) -> np.ndarray:
    """The exclusive-or pattern of the coordinates."""
    y, x = _grid(side)
    offset = draws.integers(0, 64, 2)[..., None, None]
    factor = draws.integers(3, 12)[:, None, None]
    return (((y + offset[:, 0]) ^ (x + offset[:, 1])) * factor) % 64 * 255 // 63


def clouds(draws: Draws, side: int) -> np.ndarray:
    """Value noise of two octaves."""
    n = len(draws.keys)
    total = np.zeros((n, side, side), dtype=np.int64)
    for cells, share in ((5, 2), (11, 1)):
        lattice = draws.integers(0, 256, cells, cells)
        weights = compose.interpolation(np.full(n, side), np.zeros(n), side, cells, clamp=True)
        total += share * (weights @ lattice @ weights.transpose(0, 2, 1) // (2 * side) ** 2)
    return total // 3


def cells(draws: Draws, side: int) -> np.ndarray:
    """Each pixel takes the value of the nearest of twelve random points."""
    y, x = _grid(side)
    points, values = draws.integers(0, side, 12, 2), draws.integers(0, 256, 12)
    squared = (y[..., None] - points[:, None, None, :, 0]) ** 2 + (x[..., None] - points[:, None, None, :, 1]) ** 2
    return np.take_along_axis(values, squared.argmin(axis=-1).reshape(len(values), -1), axis=1).reshape(-1, side, side)


FAMILIES: dict[str, Callable[[Draws, int], np.ndarray]] = {
    f.__name__: f for f in (stripes, waves, checks, dots, rings, weave, clouds, cells)
}


def texture(family: str, keys: np.ndarray, side: int) -> np.ndarray:
    """Textures of one family: uint8 [N, side, side, 3]."""
    draws = Draws(keys)
    ground = draws.integers(0, 256, 3)
    colour = compose.colours(draws, compose.luma(ground))
    flat = np.broadcast_to(ground.astype(np.uint8)[:, None, None, :], (len(keys), side, side, 3))
    return compose.blend(flat, FAMILIES[family](draws, side), colour)
