"""Random resizing and padding: the picture a little smaller, somewhere on a black ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from windtunnel.defenses._arrays import require_images
from windtunnel.defenses._codec import require_range
from windtunnel.defenses.base import BackwardRule, Draw, Images, Purified, RandomDefense


@dataclass(frozen=True, kw_only=True)
class RandomPad(RandomDefense):
    """Random resizing and zero padding (Xie, Wang, Zhang, Ren, Yuille, Mitigating Adversarial Effects Through
    Randomization, 2018, https://arxiv.org/abs/1711.01991), scaled to the size of the picture.

    Dice of a row: the height h, uniform in ``ceil(least H) .. H - 1`` (28 .. 31 of 32 pixels); the width is
    ``round(h W / H)``; the place, uniform among all that hold the resized picture. Resizing is bilinear (pixel
    centres, edges repeated), so the whole is ``R_top x R_left^T`` per channel: a linear map, in [0, 1] without
    clipping, not rounded to 8 bits. No file, hence no bits.

    The paper enlarges 299 pixels to 310 .. 330 of 331. Here the shape must stay, so the picture shrinks within its
    own size instead; ``least`` = .875 is a little wider than the paper's 310 / 331 = .937, which at 32 pixels would
    leave two sizes. Nearest-neighbour resizing would drop whole lines of a shrunk picture; hence bilinear.

    Rule ``exact``: that very linear map with the same dice, through all rounds; averaged over draws (EOT) it leaves
    nothing of the defense (Athalye, Carlini, Wagner, https://arxiv.org/abs/1802.00420: 0 %).
    """

    algorithm_version: ClassVar[int] = 1
    is_random: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("identity", "exact")
    generic_rules: ClassVar[tuple[str, ...]] = ("identity",)
    libraries: ClassVar[tuple[str, ...]] = ("numpy",)

    least: float = 0.875

    def __post_init__(self) -> None:
        require_range("least", self.least, 0.1, 0.99)

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Draw:
        _, height, width = shape
        smallest = min(int(np.ceil(self.least * height)), height - 1)
        drawn = np.empty((len(generators), 4), dtype=np.int64)
        for row, generator in enumerate(generators):
            tall = generator.integers(smallest, height)
            wide = max(round(tall * width / height), 1)
            drawn[row] = tall, wide, generator.integers(height - tall + 1), generator.integers(width - wide + 1)
        return {"height": drawn[:, 0], "width": drawn[:, 1], "top": drawn[:, 2], "left": drawn[:, 3]}

    def purify_drawn(self, images: Images, draw: Draw) -> Purified:
        images = require_images(images)
        result = np.empty(images.shape, dtype=np.float32)
        for row, image in enumerate(images):  # one by one: a batched product may round differently per batch size
            down, across = _maps(draw, row, images.shape)
            result[row] = down @ image @ across.T
        return Purified(np.clip(result, 0.0, 1.0, out=result))  # weights sum to 1 up to rounding

    def backward_rules_drawn(self, draws: Sequence[Draw]) -> dict[str, BackwardRule]:
        from windtunnel.backend import torch
        from windtunnel.defenses.rules import with_generic

        def exact(x: torch.Tensor) -> torch.Tensor:
            for draw in draws:
                maps = [_maps(draw, row, tuple(x.shape)) for row in range(len(x))]
                down = torch.from_numpy(np.stack([m[0] for m in maps])).to(x)[:, None]
                across = torch.from_numpy(np.stack([m[1] for m in maps])).to(x)[:, None]
                x = down @ x @ across.transpose(2, 3)
            return x

        return with_generic(self.rules, exact=exact)


def _maps(draw: Draw, row: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """([H, H], [W, W]): what resizes and places the columns and the lines of one row's picture."""
    down = placed(int(draw["height"][row]), int(draw["top"][row]), shape[2])
    return down, placed(int(draw["width"][row]), int(draw["left"][row]), shape[3])


@lru_cache(maxsize=4096)
def placed(length: int, start: int, size: int) -> np.ndarray:
    """[size, size] float32: resizes a line of ``size`` pixels to ``length``, bilinear, and puts it at ``start``; the
    rest is zero."""
    centres = ((np.arange(length) + 0.5) * size / length - 0.5).clip(0, size - 1)
    below = np.floor(centres).astype(np.int64)
    share = centres - below
    matrix = np.zeros((size, size), dtype=np.float64)
    lines = start + np.arange(length)
    matrix[lines, below] = 1.0 - share
    matrix[lines, np.minimum(below + 1, size - 1)] += share
    found = matrix.astype(np.float32)
    found.setflags(write=False)
    return found
