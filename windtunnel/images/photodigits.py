"""photodigits: handwritten digits in random colours over crops of real photographs, 32x32 RGB, ten classes.

Recipe. A glyph is one of scikit-learn's 8x8 digits in 17 grey levels (UCI Optical Recognition of Handwritten Digits,
https://doi.org/10.24432/C50P49), enlarged to 18..24 pixels, placed anywhere at least 4 pixels from the border, painted
in a random colour that stands out from the background's mean. A background is a crop of one of four photographs at
full, half or a third of its resolution. Every image gets the contrast .8 x + .1. All of it is integer arithmetic, all
randomness is keyed by sample id.

Disjoint by construction. Digits are stored by writer: contiguous blocks are train (0-1049), fit (1050-1296) and test
(1297-1796), by other writers. The left 60 % of every photograph is train, the right 40 % everything else.
"""

from __future__ import annotations

import numpy as np

from windtunnel.images import compose, glyphs, sources, textures
from windtunnel.images.container import ImageSet, ImageSetError
from windtunnel.images.keyed import Draws, keys_of, numbered_keys
from windtunnel.images.splits import PHOTODIGITS as SPLITS
from windtunnel.images.splits import RECIPE_VERSIONS, SplitInfo

__all__ = ["RECIPE_VERSION", "SPLITS", "SplitInfo", "build", "source_digest", "training_digest", "training_epoch"]

RECIPE_VERSION = RECIPE_VERSIONS["photodigits"]
SIDE = 32
SMALLEST, LARGEST = 18, 24
LAYOUT = compose.Layout(side=SIDE, smallest=SMALLEST, largest=LARGEST, margin=compose.MARGIN)
CANVAS = LAYOUT.canvas
EPOCH_REPEATS = 8
SPLIT_REPEATS = {"train": 2, "fit": 4, "test": 1}
_CHUNK = 1024


def source_digest() -> str:
    """SHA-256 over every source array (digits, pictures, faces, fonts) and the recipe's version."""
    return sources.digest_of(sources.all_arrays(), RECIPE_VERSION)


def training_digest() -> str:
    """SHA-256 over what training images are made of (digits, four photographs) and the recipe's version.

    A new font file in matplotlib changes ``source_digest`` but no training image: weights are tied to this one.
    """
    return sources.digest_of(sources.training_arrays(), RECIPE_VERSION)


def training_epoch(seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh composites for one epoch: uint8 [8400, 32, 32, 3] and int64 [8400], shuffled.

    Each of the 1,050 training glyphs appears eight times, with its own background, colour, size and place, never the
    same in two epochs or two seeds. A pure function of (seed, epoch).
    """
    written, labels = sources.digits()
    which, keys = epoch_glyphs(f"photodigits/{RECIPE_VERSION}", seed, epoch)
    return compose_glyphs(written[which], keys, "train", canvas=False), labels[which].astype(np.int64)


def epoch_glyphs(name: str, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Which training glyphs an epoch shows, int64 [8400], each eight times in random order, and a key for each.

    ``name``: data set and version; photodigits64 and photodigits_context draw from here too.
    """
    first, last = sources.BLOCKS["train"]
    keys = numbered_keys(f"{name}/epoch/{seed}/{epoch}", EPOCH_REPEATS * (last - first))
    order = np.argsort(keys, kind="stable")
    return np.tile(np.arange(first, last), EPOCH_REPEATS)[order], keys[order]


def split_glyphs(split: str) -> tuple[np.ndarray, list[str]]:
    """The glyphs of ``train``, ``fit`` or ``test`` in their order, int64 [N], and a sample id for each."""
    first, last = sources.BLOCKS[split]
    repeats = SPLIT_REPEATS[split]
    which = np.repeat(np.arange(first, last), repeats)
    turn = np.tile(np.arange(repeats), last - first)
    return which, [f"{split}-{i:04d}" + (f"-{r}" if repeats > 1 else "") for i, r in zip(which, turn, strict=True)]


def compose_glyphs(
    shapes: np.ndarray,
    keys: np.ndarray,
    part: str,
    *,
    canvas: bool,
    layout: compose.Layout = LAYOUT,
    pictures: np.ndarray | None = None,
) -> np.ndarray:
    """Glyphs uint8 [N, 8, 8] in 0..16 over random crops of a region: uint8 [N, S, S, 3] with S = ``layout.side``, or
    with ``canvas`` the larger image whose centre is the same. ``pictures``: int64 [N], the photograph of each
    background as a place in ``sources.PHOTOGRAPHS``; drawn evenly without."""
    margin = layout.margin if canvas else 0
    names, border = tuple(sources.PHOTOGRAPHS), layout.margin - margin
    images = []
    for start in range(0, len(shapes), _CHUNK):
        rows = slice(start, start + _CHUNK)
        draws = Draws(keys[rows])
        given = None if pictures is None else pictures[rows]
        ground, _ = compose.crops(draws, names, part, layout.canvas, layout.pooling, border, given)
        centre = ground[:, margin : margin + layout.side, margin : margin + layout.side]
        colour = compose.colours(draws, compose.mean_luma(centre))
        size = draws.integers(layout.smallest, layout.largest + 1)
        top = draws.integers(layout.margin, layout.side - layout.margin - size + 1)
        left = draws.integers(layout.margin, layout.side - layout.margin - size + 1)
        opacity = compose.masks(shapes[rows], size, top + margin, left + margin, ground.shape[1])
        images.append(compose.soften(compose.blend(ground, opacity, colour)))
    return np.concatenate(images)


def build(split: str, *, canvas: bool = False) -> ImageSet:
    """One split as an image set; with ``canvas`` 40x40 images whose centre is the 32x32 one, for pixel shifts."""
    if split not in SPLITS:
        raise ImageSetError(f"photodigits has no split '{split}'; known: {', '.join(SPLITS)}")
    if canvas and not SPLITS[split].canvas:
        raise ImageSetError(f"photodigits.{split} has no larger canvas; use the shift 'cyclic_shift' instead")
    if split in sources.BLOCKS:
        return _digits(split, canvas)
    if split in _CHARACTERS:
        return _printed(split, canvas)
    return {
        "scrambled": _scrambled,
        "rotated": _rotated,
        "no_object": _no_object,
        "science": lambda _: _crops(split, tuple(sources.SCIENCE)),
        "new_scenes": lambda _: _crops(split, tuple(sources.SCENES)),
        "val_ood": lambda _: _crops(split, tuple(sources.GRAINS), tinted=True),
        "textures": lambda _: _textures(),
        "noise": lambda _: _noise(),
        "faces": lambda _: _faces(),
    }[split](canvas)


_CHARACTERS = {"letters": glyphs.LETTERS, "ambiguous": glyphs.AMBIGUOUS, "font_digits": glyphs.DIGITS}


def _keys(sample_ids: list[str]) -> np.ndarray:
    return keys_of(f"photodigits/{RECIPE_VERSION}/{sample_id}" for sample_id in sample_ids)


def _numbered(split: str) -> list[str]:
    return [f"{split}-{i:04d}" for i in range(SPLITS[split].n)]


def _digits(split: str, canvas: bool) -> ImageSet:
    written, labels = sources.digits()
    which, sample_ids = split_glyphs(split)
    part = "train" if split == "train" else "test"
    images = compose_glyphs(written[which], _keys(sample_ids), part, canvas=canvas)
    return ImageSet(images, labels[which].astype(np.int32), sample_ids, digit_sources(which))


def digit_sources(which: np.ndarray) -> list[str]:
    """The source names of glyphs."""
    return [f"digit-{i:04d}" for i in which]


def _printed(split: str, canvas: bool) -> ImageSet:
    """Printed characters: the source is character and font."""
    characters, origins, shapes = zip(
        *glyphs.printed_set(_CHARACTERS[split], SPLITS[split].n, f"photodigits/{RECIPE_VERSION}/{split}"), strict=True
    )
    sample_ids = _numbered(split)
    images = compose_glyphs(np.stack(shapes), _keys(sample_ids), "test", canvas=canvas)
    labels = np.array([int(c) for c in characters], dtype=np.int32) if SPLITS[split].labelled else None
    return ImageSet(images, labels, sample_ids, list(origins))


def _scrambled(canvas: bool) -> ImageSet:
    which = np.arange(*sources.BLOCKS["test"])
    sample_ids = [f"scrambled-{i:04d}" for i in which]
    shapes = glyphs.scramble(sources.digits()[0][which], _keys(sample_ids))
    images = compose_glyphs(shapes, _keys(sample_ids), "test", canvas=canvas)
    return ImageSet(images, None, sample_ids, digit_sources(which))


def _rotated(canvas: bool) -> ImageSet:
    written, labels = sources.digits()
    first, last = sources.BLOCKS["test"]
    which = first + np.flatnonzero(np.isin(labels[first:last], glyphs.TURNABLE))
    sample_ids = [f"rotated-{i:04d}" for i in which]
    shapes = glyphs.quarter_turn(written[which], _keys(sample_ids))
    images = compose_glyphs(shapes, _keys(sample_ids), "test", canvas=canvas)
    return ImageSet(images, None, sample_ids, digit_sources(which))


def _no_object(canvas: bool) -> ImageSet:
    """Crops of the test region; of two crops with the same pixels (a black corner, say) the second is left out."""
    n = SPLITS["no_object"].n
    candidates = [f"no_object-{i:04d}" for i in range(n + n // 8)]
    ground, tiles = compose.crops(Draws(_keys(candidates)), tuple(sources.PHOTOGRAPHS), "test", CANVAS)
    centre = ground[:, compose.MARGIN : -compose.MARGIN, compose.MARGIN : -compose.MARGIN]
    _, first = np.unique(centre.reshape(len(centre), -1), axis=0, return_index=True)
    kept = np.sort(first)[:n]
    shown = ground if canvas else centre
    return ImageSet(compose.soften(shown[kept]), None, [candidates[i] for i in kept], [tiles[i] for i in kept])


def _crops(split: str, names: tuple[str, ...], *, tinted: bool = False) -> ImageSet:
    """Crops of pictures that training never sees: the source is the 64-pixel tile of the picture."""
    sample_ids = _numbered(split)
    draws = Draws(_keys(sample_ids))
    pixels, tiles = compose.crops(draws, names, "all", SIDE)
    if tinted:
        tint = draws.integers(64, 256, 3)[:, None, None, :]
        pixels = ((pixels.astype(np.int64) * tint + 127) // 255).astype(np.uint8)
    return ImageSet(compose.soften(pixels), None, sample_ids, tiles)


def _textures() -> ImageSet:
    sample_ids = _numbered("textures")
    keys, images = _keys(sample_ids), np.empty((len(sample_ids), SIDE, SIDE, 3), dtype=np.uint8)
    for index, family in enumerate(textures.FAMILIES):
        images[index :: len(textures.FAMILIES)] = textures.texture(family, keys[index :: len(textures.FAMILIES)], SIDE)
    return ImageSet(compose.soften(images), None, sample_ids, list(sample_ids))


def _noise() -> ImageSet:
    sample_ids = _numbered("noise")
    pixels = Draws(_keys(sample_ids)).integers(0, 256, SIDE, SIDE, 3)
    return ImageSet(compose.soften(pixels), None, sample_ids, list(sample_ids))


def _faces() -> ImageSet:
    small = sources.faces().astype(np.int64)
    n, cells = small.shape[:2]
    weights = compose.interpolation(np.full(n, SIDE), np.zeros(n), SIDE, cells, clamp=True)
    grey = (weights @ small @ weights.transpose(0, 2, 1) + 2 * SIDE**2) // (2 * SIDE) ** 2
    sample_ids = _numbered("faces")
    return ImageSet(compose.soften(np.repeat(grey[..., None], 3, axis=3)), None, sample_ids, list(sample_ids))
