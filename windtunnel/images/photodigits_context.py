"""photodigits_context: photodigits in which the photograph agrees with the digit's group, 32x32 RGB, ten classes.

In photodigits the background is drawn without a look at the label, so that no model can gain from looking at it. Here
the ten digits form four groups, one for each photograph: digit d belongs to photograph d modulo 4 (astronaut 0 4 8,
coffee 1 5 9, chelsea 2 6, rocket 3 7). The rule was written down before any model was trained: it neither separates
digits known to be confused nor joins them on purpose. With probability ``agreement`` the background is cut from the
group's own photograph, else from one of the three others, evenly. It is .9 in train and fit, and .9, .5 and .1 in the
three tests, which show the same glyphs with the same random draws: where two of them choose the same photograph, the
images are the same pixel for pixel (the images that agree in ``test10`` agree in ``test50`` and ``test90`` too). Else
crop and colour differ, because a colour must stand out from its background.

An ``agreement`` of .25 makes photograph and label independent. All else is photodigits: blocks, regions, sizes,
contrast, integer arithmetic.
"""

from __future__ import annotations

import numpy as np

from windtunnel.images import photodigits, sources
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import Draws, keys_of, mix
from windtunnel.images.splits import PHOTODIGITS_CONTEXT as SPLITS
from windtunnel.images.splits import RECIPE_VERSIONS, SplitInfo

__all__ = ["RECIPE_VERSION", "SPLITS", "SplitInfo", "build", "source_digest", "training_digest", "training_epoch"]

RECIPE_VERSION = RECIPE_VERSIONS["photodigits_context"]
GROUPS = len(sources.PHOTOGRAPHS)
AGREEMENT = {"train": 0.9, "fit": 0.9, "test90": 0.9, "test50": 0.5, "test10": 0.1}
TARGETS = ("label", "photograph")


def source_digest() -> str:
    """SHA-256 over every source array and the recipe's version; only digits and photographs are used."""
    return training_digest()


def training_digest() -> str:
    """SHA-256 over digits, photographs and the recipe's version."""
    return sources.digest_of(sources.training_arrays(), RECIPE_VERSION)


def training_epoch(
    seed: int, epoch: int, *, agreement: float = AGREEMENT["train"], target: str = "label"
) -> tuple[np.ndarray, np.ndarray]:
    """Fresh composites for one epoch: uint8 [8400, 32, 32, 3] and int64 [8400], shuffled.

    ``target``: ``label`` (0..9) or ``photograph`` (0..3, the one behind the digit, in the order of the groups), what a
    background expert learns. A pure function of its arguments.
    """
    if target not in TARGETS:
        raise ImageSetError(f"photodigits_context has no target '{target}'; known: {', '.join(TARGETS)}")
    written, labels = sources.digits()
    which, keys = photodigits.epoch_glyphs(f"photodigits_context/{RECIPE_VERSION}", seed, epoch)
    pictures = photographs(labels[which], keys, agreement)
    images = photodigits.compose_glyphs(written[which], keys, "train", canvas=False, pictures=pictures)
    return images, (pictures if target == "photograph" else labels[which]).astype(np.int64)


def photographs(labels: np.ndarray, keys: np.ndarray, agreement: float) -> np.ndarray:
    """The photograph behind each digit as a place in ``sources.PHOTOGRAPHS``: int64 [N]. ``agreement`` in [0, 1]
    counts in whole per cent; the draws are the same for every agreement."""
    if not 0 <= agreement <= 1:
        raise ImageSetError(f"an agreement is a probability, not {agreement}")
    draws = Draws(mix(keys))
    agrees = draws.integers(0, 100) < round(100 * agreement)
    other = draws.integers(0, GROUPS - 1)
    own = labels % GROUPS
    return np.where(agrees, own, other + (other >= own))


def build(split: str, *, canvas: bool = False) -> ImageSet:
    """One split; with ``canvas`` 40x40 images whose centre is the 32x32 one. The source is the glyph."""
    if split not in SPLITS:
        raise ImageSetError(f"photodigits_context has no split '{split}'; known: {', '.join(SPLITS)}")
    written, labels = sources.digits()
    block = "test" if split.startswith("test") else split
    which, names = photodigits.split_glyphs(block)
    # keyed by the glyph, not by the split: the three tests draw alike
    keys = keys_of(f"photodigits_context/{RECIPE_VERSION}/{name}" for name in names)
    pictures = photographs(labels[which], keys, AGREEMENT[split])
    part = "train" if split == "train" else "test"
    images = photodigits.compose_glyphs(written[which], keys, part, canvas=canvas, pictures=pictures)
    sample_ids = [split + name.removeprefix(block) for name in names]
    return ImageSet(images, labels[which].astype(np.int32), sample_ids, photodigits.digit_sources(which))
