"""Glyphs onto photograph crops, in integer arithmetic throughout: the same pixels on every machine.

Every function is pure and row-wise: sample i depends on row i of its arguments only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from windtunnel.images import sources
from windtunnel.images.keyed import Draws

MARGIN = 4  # the largest pixel shift; a canvas is the image with this margin on every side
CONTRAST_GAP = 96  # least difference of luma (0..255) between a glyph's colour and the mean of its background
POOLING = (1, 2, 3)  # backgrounds show a photograph at full, half and a third of its resolution


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The measures of an image with one glyph on it, in pixels.

    The image is ``side`` wide and high; the glyph's box has ``smallest`` to ``largest`` and lies at least ``margin``
    from the border; a canvas is the image with ``margin`` on every side. ``pooling``: see ``crops``.
    """

    side: int
    smallest: int
    largest: int
    margin: int
    pooling: tuple[int, ...] = POOLING

    @property
    def canvas(self) -> int:
        """Side of the canvas."""
        return self.side + 2 * self.margin


_SOFTENED = ((8 * np.arange(256) + 260) // 10).astype(np.uint8)


def soften(pixels: np.ndarray) -> np.ndarray:
    """The contrast that every built-in image gets: round(.8 x + .1 * 255), so values lie in 26..230. uint8 -> uint8."""
    return _SOFTENED[pixels]


def luma(colours: np.ndarray) -> np.ndarray:
    """Rec. 601 luma of RGB integers [..., 3], in 1/256 parts summed and floored: int64 [...] in 0..255."""
    return (colours.astype(np.int64) * np.array([77, 150, 29])).sum(axis=-1) >> 8


def mean_luma(pixels: np.ndarray) -> np.ndarray:
    """Luma of the mean colour of images uint8 [N, H, W, 3]: int64 [N]."""
    return luma(pixels.sum(axis=(1, 2), dtype=np.int64) // (pixels.shape[1] * pixels.shape[2]))


def interpolation(sizes: np.ndarray, starts: np.ndarray, window: int, cells: int = 8, *,
                  clamp: bool = False) -> np.ndarray:  # fmt: skip
    """Weights of bilinear enlargement of ``cells`` to ``sizes`` pixels: int64 [N, window, cells].

    Pixel p of the window lies at p - start within the enlarged glyph; a row sums to 2 * size inside, less at the
    border, where the glyph fades into nothing (with ``clamp`` the outermost cells go on instead), and is zero outside.
    """
    sizes, starts = np.asarray(sizes, dtype=np.int64)[:, None], np.asarray(starts, dtype=np.int64)[:, None]
    place = np.arange(window, dtype=np.int64)[None, :] - starts
    position = (2 * place + 1) * cells - sizes  # in units of 1 / (2 * size)
    below, part = position // (2 * sizes), position % (2 * sizes)
    inside = (place >= 0) & (place < sizes)
    columns = np.arange(cells, dtype=np.int64)
    above = below + 1
    if clamp:
        below, above = np.clip(below, 0, cells - 1), np.clip(above, 0, cells - 1)
    weights = (below[..., None] == columns) * (2 * sizes - part)[..., None]
    weights += (above[..., None] == columns) * part[..., None]
    return weights * inside[..., None]


def masks(glyphs: np.ndarray, sizes: np.ndarray, tops: np.ndarray, lefts: np.ndarray, window: int) -> np.ndarray:
    """Opacity of glyphs uint8 [N, 8, 8] in 0..16, enlarged and placed: int64 [N, window, window] in 0..255.

    The ramp from 1/8 to 7/8 of full ink is stretched to full opacity: a crisp body, a soft edge, and holes stay holes.
    """
    rows, columns = interpolation(sizes, tops, window), interpolation(sizes, lefts, window)
    ink = rows @ glyphs.astype(np.int64) @ columns.transpose(0, 2, 1)
    full = (16 * (2 * np.asarray(sizes, dtype=np.int64)) ** 2)[:, None, None]
    return np.clip((ink * 8 - full) * 255 // (6 * full), 0, 255)


def colours(draws: Draws, ground: np.ndarray) -> np.ndarray:
    """Random colours that stand out from backgrounds of mean luma ``ground`` [N]: int64 [N, 3] in 0..255.

    A colour nearer than ``CONTRAST_GAP`` is mixed with white (on a dark ground) or black (on a light one) just far
    enough.
    """
    drawn = draws.integers(0, 256, 3)
    own = luma(drawn)
    near = np.abs(own - ground) < CONTRAST_GAP
    dark = ground < 128
    lighten = -(-256 * (ground + CONTRAST_GAP - own) // np.maximum(255 - own, 1))
    darken = -(-256 * (own - ground + CONTRAST_GAP) // np.maximum(own, 1))
    step = np.where(near, np.where(dark, lighten, darken), 0)[:, None]
    goal = np.where(dark, 255, 0)[:, None]
    return np.clip(drawn + ((goal - drawn) * step) // 256, 0, 255)


def blend(ground: np.ndarray, opacity: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Paint ``colour`` [N, 3] over ``ground`` uint8 [N, H, W, 3] with ``opacity`` [N, H, W] in 0..255: uint8."""
    opacity = opacity.astype(np.int32)[..., None]
    mixed = ground * (255 - opacity) + colour.astype(np.int32)[:, None, None, :] * opacity
    return ((mixed + 127) // 255).astype(np.uint8)


def crops(draws: Draws, names: tuple[str, ...], part: str, side: int, pooling: tuple[int, ...] = POOLING,
          border: int = 0, pictures: np.ndarray | None = None) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Random square crops of pictures, and the region each came from.

    Returns uint8 [N, side - 2 * border, same, 3] and source names 'picture/row-column' of the 64-pixel tile in which
    the crop's centre lies. A picture and a pooling factor are drawn evenly; with ``pictures``, int64 [N] of places in
    ``names``, the picture is given and the factor is drawn. ``border`` leaves out that many pixels on every side of
    the drawn crop (the window of a canvas without its margin).
    """
    atlas = [(name, factor, sources.region(name, part, factor)) for name in names for factor in pooling]
    atlas = [entry for entry in atlas if min(entry[2].shape[:2]) >= side]
    heights = np.array([pixels.shape[0] for _, _, pixels in atlas])
    widths = np.array([pixels.shape[1] for _, _, pixels in atlas])
    factors = np.array([factor for _, factor, _ in atlas])
    which = draws.integers(0, len(atlas)) if pictures is None else _entries(draws, names, atlas, pictures)
    top = draws.integers(0, heights[which] - side + 1)
    left = draws.integers(0, widths[which] - side + 1)
    shown = np.arange(border, side - border)
    out = np.empty((len(which), len(shown), len(shown), 3), dtype=np.uint8)
    for index, (_, _, pixels) in enumerate(atlas):
        rows = np.flatnonzero(which == index)
        out[rows] = pixels[(top[rows, None] + shown)[:, :, None], (left[rows, None] + shown)[:, None, :]]
    tile_row, tile_column = ((corner + side // 2) * factors[which] // 64 for corner in (top, left))
    tiles = [
        f"{atlas[i][0]}-{part}/{r}-{c}"
        for i, r, c in zip(which.tolist(), tile_row.tolist(), tile_column.tolist(), strict=True)
    ]
    return out, tiles


def _entries(draws: Draws, names: tuple[str, ...], atlas: Sequence[tuple[str, int, np.ndarray]],
             pictures: np.ndarray) -> np.ndarray:  # fmt: skip
    """For each row one of the atlas entries of its picture, drawn evenly: an atlas is sorted by picture."""
    counts = np.array([sum(entry[0] == name for entry in atlas) for name in names])
    first = np.cumsum(counts) - counts
    return first[pictures] + draws.integers(0, counts[pictures])
