"""What the planner may know of the built-in image sets without building them: no import but the standard library."""

from __future__ import annotations

from dataclasses import dataclass

# Raised by hand whenever a pixel, a label or an identifier of any split changes: part of every identity.
RECIPE_VERSIONS = {"photodigits": 1, "photoscenes": 1, "photodigits64": 1, "photodigits_context": 1}
CLASSES = {"photodigits": 10, "photoscenes": 10, "photodigits64": 10, "photodigits_context": 10}

# Severities of every shift; what they mean stands in shifts.py.
SHIFTS: dict[str, tuple[int, ...]] = {
    "gaussian_noise": (1, 2, 3),
    "gaussian_blur": (1, 2, 3),
    "contrast": (1, 2, 3),
    "jpeg_artefacts": (1, 2, 3),
    "pixel_shift": (1, 2, 4),
    "cyclic_shift": (1, 2, 4),
}
SHIFT_VERSION = 1  # raised by hand whenever a shifted pixel changes
CANVAS_SHIFTS = ("pixel_shift",)  # cut from the larger canvas: only for splits whose ``canvas`` is true


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split of a data set.

    ``role``: train | fit | id | near_ood | far_ood | shifted | no_object | ambiguous | sanity | validation.
    ``n``: number of samples. ``size``: (height, width). ``labelled``: whether samples carry a label.
    ``canvas``: whether the split can be rendered with a margin, for realistic pixel shifts.
    """

    role: str
    n: int
    description: str
    size: tuple[int, int] = (32, 32)
    labelled: bool = False
    canvas: bool = False


def _labelled(role: str, n: int, description: str, size: tuple[int, int] = (32, 32)) -> SplitInfo:
    return SplitInfo(role=role, n=n, description=description, size=size, labelled=True, canvas=True)


def _glyphs(role: str, n: int, description: str) -> SplitInfo:
    return SplitInfo(role=role, n=n, description=description, canvas=True)


def _pictures(role: str, n: int, description: str) -> SplitInfo:
    return SplitInfo(role=role, n=n, description=description)


PHOTODIGITS: dict[str, SplitInfo] = {
    "train": _labelled("train", 2100, "digits 0-1049, each twice, over the left 60 % of four photographs"),
    "fit": _labelled("fit", 988, "digits 1050-1296, each four times, over the right 40 % of the photographs"),
    "test": _labelled("id", 500, "digits 1297-1796, each once, over the right 40 % of the photographs"),
    "letters": _glyphs("near_ood", 500, "printed letters A C E F H K M N P R V W Y in the style of the digits"),
    "scrambled": _glyphs(
        "near_ood", 500, "every test digit with the quadrants of its 8x8 glyph permuted, all four moved"
    ),
    "rotated": _glyphs("near_ood", 252, "every test digit 2, 3, 4, 5, 7 turned by 90 degrees, left or right"),
    "science": _pictures("far_ood", 500, "crops of a retina, stained tissue and the Hubble deep field"),
    "textures": _pictures("far_ood", 500, "synthetic two-colour textures of eight families"),
    "new_scenes": _pictures("far_ood", 500, "crops of two photographs that training never sees: china, flower"),
    "no_object": _glyphs("no_object", 500, "backgrounds of the test region without a digit"),
    "ambiguous": _glyphs("ambiguous", 500, "printed letters that may pass for digits: B D G I J L O Q S T U X Z"),
    "font_digits": _labelled("shifted", 500, "printed digits 0-9 in the style of the written ones"),
    "noise": _pictures("sanity", 500, "uniform noise; its total variation alone separates it"),
    "faces": _pictures("sanity", 100, "grey 25x25 face crops, enlarged; their missing colour alone separates them"),
    "val_ood": _pictures("validation", 500, "tinted crops of brick, grass, gravel: to choose settings, in no table"),
}

PHOTOSCENES: dict[str, SplitInfo] = {
    "train": _labelled("train", 1050, "scenes of training digits over the left 60 % of the photographs", (128, 128)),
    "fit": _labelled("fit", 247, "scenes of digits 1050-1296 over the right 40 % of the photographs", (128, 128)),
    "test": _labelled("id", 200, "scenes of two to four test digits; the label is the largest one's", (128, 128)),
}

PHOTODIGITS64: dict[str, SplitInfo] = {
    "train": _labelled("train", 2100, "photodigits.train at twice the size: the same glyphs and regions", (64, 64)),
    "fit": _labelled("fit", 988, "photodigits.fit at twice the size", (64, 64)),
    "test": _labelled("id", 500, "photodigits.test at twice the size", (64, 64)),
}

PHOTODIGITS_CONTEXT: dict[str, SplitInfo] = {
    "train": _labelled("train", 2100, "digits over their group's own photograph with probability .9, else another"),
    "fit": _labelled("fit", 988, "digits 1050-1296, the photograph agrees with probability .9"),
    "test90": _labelled("id", 500, "every test digit once, the photograph agrees with probability .9 as in training"),
    "test50": _labelled("id", 500, "the same digits, the photograph agrees with probability .5"),
    "test10": _labelled("id", 500, "the same digits, the photograph agrees with probability .1"),
}
