"""photodigits64: photodigits at twice the size, 64x64 RGB, for learned codecs and for questions of detail.

At 32 pixels a glyph of 8x8 cells has no detail that a codec could invent or lose, and a file is mostly header. Here a
glyph has 36..48 pixels, lies at least 8 from the border, and the background shows four times as much of a photograph.
All else is photodigits: the same glyphs in the same disjoint blocks, the same regions, contrast and integer arithmetic,
randomness keyed by sample id. Backgrounds show a photograph at full or half its resolution; at a third, as in
photodigits, the right regions of two photographs would be too small.
"""

from __future__ import annotations

import numpy as np

from windtunnel.images import compose, photodigits, sources
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import keys_of
from windtunnel.images.splits import PHOTODIGITS64 as SPLITS
from windtunnel.images.splits import RECIPE_VERSIONS, SplitInfo

__all__ = ["RECIPE_VERSION", "SPLITS", "SplitInfo", "build", "source_digest", "training_digest", "training_epoch"]

RECIPE_VERSION = RECIPE_VERSIONS["photodigits64"]
LAYOUT = compose.Layout(side=64, smallest=36, largest=48, margin=8, pooling=(1, 2))


def source_digest() -> str:
    """SHA-256 over every source array and the recipe's version; only digits and photographs are used."""
    return training_digest()


def training_digest() -> str:
    """SHA-256 over digits, photographs and the recipe's version."""
    return sources.digest_of(sources.training_arrays(), RECIPE_VERSION)


def training_epoch(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh composites for one epoch: uint8 [8400, 64, 64, 3] and int64 [8400], shuffled, each training glyph eight
    times. A pure function of (seed, epoch)."""
    written, labels = sources.digits()
    which, keys = photodigits.epoch_glyphs(f"photodigits64/{RECIPE_VERSION}", seed, epoch)
    images = photodigits.compose_glyphs(written[which], keys, "train", canvas=False, layout=LAYOUT)
    return images, labels[which].astype(np.int64)


def build(split: str, *, canvas: bool = False) -> ImageSet:
    """One split; with ``canvas`` 80x80 images whose centre is the 64x64 one. The source is the glyph."""
    if split not in SPLITS:
        raise ImageSetError(f"photodigits64 has no split '{split}'; known: {', '.join(SPLITS)}")
    written, labels = sources.digits()
    which, sample_ids = photodigits.split_glyphs(split)
    keys = keys_of(f"photodigits64/{RECIPE_VERSION}/{sample_id}" for sample_id in sample_ids)
    part = "train" if split == "train" else "test"
    images = photodigits.compose_glyphs(written[which], keys, part, canvas=canvas, layout=LAYOUT)
    return ImageSet(images, labels[which].astype(np.int32), sample_ids, photodigits.digit_sources(which))
