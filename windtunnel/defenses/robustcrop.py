"""Robust crop: the picture itself decides where its frame and its crop are, wherever it was shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Defense, Images, Purified

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RobustCrop(Defense):
    """A crop chosen by a deterministic rule on the picture, so that a shifted picture gives the same crop, after
    Shifman, Weiss, Lost in Translation: Modern Neural Networks Still Struggle With Small Realistic Image
    Transformations, https://arxiv.org/abs/2404.07153 (RICS).

    Provable: the result is the same, bit for bit, for all integer *cyclic* shifts of a picture. The rule has two steps.
    (1) Frame. The line of pixels and the column at which the picture starts: where the jump to the line before,
    ``d_i = sum min(|x_i - x_{i-1}|, jump)``, most exceeds its two neighbours, ``2 d_i - d_{i-1} - d_{i+1}``; all
    indices cyclic, all sums over a line and its channels, in whole numbers on the picture rounded to 8 bits. In a
    natural picture that is its border, seldom something else. Among equals the frame whose pixels come last in
    lexicographic order is taken, so equals that remain are the same picture. (2) Crop. Inside that frame, the window of
    ``share`` of each side (at least one pixel) with the most distance to the picture's median colour (lower median per
    channel, summed absolute differences), weighted by a pyramid that is highest in the window's middle; the first of
    equals. A function of the frame alone, so the proof stands.

    Output, of the same shape: the window in the middle, its border pixels repeated outwards; no pixel value is changed.
    Resizing the window instead cost 2 to 12 points more clean accuracy in a trial, on a model that never saw larger
    digits. No file, hence no bits.

    Deviations: the selection kernel of the paper is not in its abstract and no code could be read; both steps here are
    choices of this library. Without step 1 a window may wrap around the border, and clean accuracy on 32-pixel
    photodigits fell from .93 to .75 at best. ``jump``, in grey levels, is the best of 2 to 32 on photodigits.fit. A
    *realistic* shift, which brings new pixels into view, may change frame and crop; there nothing is proved.

    Rule ``exact``: the same gathering of pixels with the selection held, through all ``rounds``; the selection is
    piecewise constant, so this is the gradient wherever there is one. An attack on the selection is not in it.
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = False
    rules: ClassVar[tuple[str, ...]] = ("exact", "identity", "blur")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity", "blur")
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    share: float
    jump: int = 8

    def __post_init__(self) -> None:
        require_range("share", self.share, 0.1, 1.0)
        require_range("jump", self.jump, 1, 255)

    def select(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(lines [H], columns [W]): which pixel of a [3, H, W] picture stands at each place of the result."""
        grey = np.rint(image * np.float32(255.0)).astype(np.int64)
        top, left = _frame(image, self._seams(grey, 1), self._seams(grey, 2))
        framed = np.roll(grey, (-top, -left), axis=(1, 2))
        down, right = self._window(framed)
        _, height, width = image.shape
        lines, columns = _placed(down, *self._sides(height)), _placed(right, *self._sides(width))
        return (lines + top) % height, (columns + left) % width

    def purify(self, images: Images) -> Purified:
        images = require_images(images)
        result = np.empty(images.shape, dtype=np.float32)
        for row, image in enumerate(images):
            lines, columns = self.select(image)
            result[row] = image[:, lines[:, None], columns]
        return Purified(result)

    def backward_rules(self, rounds: int = 1) -> dict[str, BackwardRule]:
        from windtunnel.defenses.rules import repeated, with_generic

        return with_generic(self.rules, exact=repeated(self._gather, rounds))

    def _gather(self, x: torch.Tensor) -> torch.Tensor:
        from windtunnel.backend import torch

        images = x.detach().to("cpu", torch.float32).numpy()
        chosen = [self.select(image) for image in images]
        lines, columns = (torch.from_numpy(np.stack(part)).to(x.device) for part in zip(*chosen, strict=True))
        row, channel = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
        return x[row[:, None, None, None], channel[:, None, None], lines[:, None, :, None], columns[:, None, None, :]]

    def _sides(self, size: int) -> tuple[int, int]:
        return max(1, round(self.share * size)), size

    def _seams(self, grey: np.ndarray, axis: int) -> np.ndarray:
        """[size] int64: by how much the jump before each line (axis 1) or column (axis 2) exceeds its neighbours'."""
        steps = np.minimum(np.abs(grey - np.roll(grey, 1, axis)), self.jump).sum(axis=(0, 3 - axis))
        return 2 * steps - np.roll(steps, 1) - np.roll(steps, -1)

    def _window(self, framed: np.ndarray) -> tuple[int, int]:
        """(top, left) of the best window inside the frame."""
        _, height, width = framed.shape
        flat = framed.reshape(3, -1)
        middle = np.partition(flat, (flat.shape[1] - 1) // 2, axis=1)[:, (flat.shape[1] - 1) // 2]
        distance = np.abs(framed - middle[:, None, None]).sum(axis=0)
        scores = _pyramids(*self._sides(height)) @ distance @ _pyramids(*self._sides(width)).T
        down, right = np.unravel_index(scores.argmax(), scores.shape)
        return int(down), int(right)


def _frame(image: np.ndarray, down: np.ndarray, across: np.ndarray) -> tuple[int, int]:
    """Line and column of the largest seams; among equals those whose frame is the last in lexicographic order of its
    pixels (by line, column, channel), so that any that are left are the same picture."""
    _, height, width = image.shape
    tops, lefts = np.flatnonzero(down == down.max()), np.flatnonzero(across == across.max())
    tops, lefts = (part.ravel() for part in np.meshgrid(tops, lefts, indexing="ij"))
    if len(tops) == 1 or (image == image[:, :1, :1]).all():
        return int(tops[0]), int(lefts[0])
    for y, x in np.ndindex(height, width):
        for channel in image:
            values = channel[(tops + y) % height, (lefts + x) % width]
            best = values == values.max()
            tops, lefts = tops[best], lefts[best]
        if len(tops) == 1:
            break
    return int(tops[0]), int(lefts[0])


def _placed(start: int, side: int, size: int) -> np.ndarray:
    """[size] int64: the pixels ``start .. start + side - 1`` in the middle of a line, the outermost ones repeated."""
    return start + np.clip(np.arange(size) - (size - side) // 2, 0, side - 1)


def _pyramids(side: int, size: int) -> np.ndarray:
    """[size - side + 1, size] int64: the triangular weights 1, 2 .. 2, 1 of every window of a line."""
    weights = np.minimum(np.arange(1, side + 1), np.arange(side, 0, -1))
    return np.stack([np.pad(weights, (start, size - side - start)) for start in range(size - side + 1)])
