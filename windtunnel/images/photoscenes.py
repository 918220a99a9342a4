"""photoscenes: two to four handwritten digits on one photograph crop, 128x128 RGB, for questions of rate.

Of a JPEG-50 file of photodigits .84 is what a constant image costs too; here it is .45. The parts are those of
photodigits: the same glyphs in the same disjoint blocks, the same regions of the same photographs, the same contrast,
integer arithmetic.

Rule of the label: the digit with the largest box. One digit is 42..54 pixels large, the others 20..30, so the answer is
never in doubt. The digits lie in different quarters of the scene and at least 4 pixels from the border.
"""

from __future__ import annotations

import numpy as np

from windtunnel.images import compose, sources
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import Draws, keys_of, numbered_keys
from windtunnel.images.splits import PHOTOSCENES as SPLITS
from windtunnel.images.splits import RECIPE_VERSIONS, SplitInfo

__all__ = ["RECIPE_VERSION", "SPLITS", "SplitInfo", "build", "source_digest", "training_digest", "training_epoch"]

RECIPE_VERSION = RECIPE_VERSIONS["photoscenes"]
SIDE = 128
CANVAS = SIDE + 2 * compose.MARGIN
QUARTER = (SIDE - 2 * compose.MARGIN) // 2
MAIN, OTHERS = (42, 54), (20, 30)
EPOCH_REPEATS = 4
_CHUNK = 128


def source_digest() -> str:
    """SHA-256 over every source array and the recipe's version; the scenes use digits and photographs only."""
    return training_digest()


def training_digest() -> str:
    """SHA-256 over digits, photographs and the recipe's version."""
    return sources.digest_of(sources.training_arrays(), RECIPE_VERSION)


def training_epoch(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh scenes for one epoch: uint8 [4200, 128, 128, 3] and int64 [4200], shuffled; each training glyph is the
    largest four times. A pure function of (seed, epoch)."""
    first, last = sources.BLOCKS["train"]
    keys = numbered_keys(f"photoscenes/{RECIPE_VERSION}/epoch/{seed}/{epoch}", EPOCH_REPEATS * (last - first))
    order = np.argsort(keys, kind="stable")
    which = np.tile(np.arange(first, last), EPOCH_REPEATS)[order]
    return compose_scenes(which, keys[order], "train", "train", canvas=False), sources.digits()[1][which]


def build(split: str, *, canvas: bool = False) -> ImageSet:
    """One split; with ``canvas`` 136x136 images whose centre is the 128x128 one. The source is the largest digit's
    glyph.
    """
    if split not in SPLITS:
        raise ImageSetError(f"photoscenes has no split '{split}'; known: {', '.join(SPLITS)}")
    first, last = sources.BLOCKS[split]
    chosen = np.argsort(keys_of(f"photoscenes/{RECIPE_VERSION}/{split}/{i}" for i in range(first, last)), kind="stable")
    which = np.sort(first + chosen[: SPLITS[split].n])
    sample_ids = [f"{split}-{i:04d}" for i in which]
    keys = keys_of(f"photoscenes/{RECIPE_VERSION}/{sample_id}" for sample_id in sample_ids)
    images = compose_scenes(which, keys, split, "train" if split == "train" else "test", canvas=canvas)
    labels = sources.digits()[1][which].astype(np.int32)
    return ImageSet(images, labels, sample_ids, [f"digit-{i:04d}" for i in which])


def compose_scenes(which: np.ndarray, keys: np.ndarray, block: str, part: str, *, canvas: bool) -> np.ndarray:
    """Scenes uint8 [N, S, S, 3] whose largest digit is glyph ``which`` [N], the others drawn from the same block."""
    written = sources.digits()[0]
    margin = compose.MARGIN if canvas else 0
    scenes = []
    for start in range(0, len(which), _CHUNK):
        draws = Draws(keys[start : start + _CHUNK])
        n = len(draws.keys)
        scene, _ = compose.crops(draws, tuple(sources.PHOTOGRAPHS), part, CANVAS, border=compose.MARGIN - margin)
        quarters = np.argsort(draws.raw(4), axis=1, kind="stable")
        others = draws.integers(1, 4)
        for place in range(4):
            glyph = which[start : start + _CHUNK] if place == 0 else draws.integers(*sources.BLOCKS[block])
            smallest, largest = MAIN if place == 0 else OTHERS
            size = draws.integers(smallest, largest + 1)
            corner = margin + compose.MARGIN + QUARTER * np.stack([quarters[:, place] // 2, quarters[:, place] % 2])
            top, left = (start_at + draws.integers(0, QUARTER - size + 1) for start_at in corner)
            quarter = np.arange(QUARTER)
            beneath = scene[np.arange(n)[:, None, None], (corner[0][:, None] + quarter)[:, :, None],
                            (corner[1][:, None] + quarter)[:, None, :]]  # fmt: skip
            colour = compose.colours(draws, compose.mean_luma(beneath))
            opacity = compose.masks(written[glyph], size, top, left, scene.shape[1])
            opacity = opacity * (place <= others)[:, None, None]
            scene = compose.blend(scene, opacity, colour)
        scenes.append(compose.soften(scene))
    return np.concatenate(scenes)
