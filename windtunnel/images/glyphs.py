"""Glyphs that are no training digit: printed characters in the style of the UCI digits, scrambled and turned digits.

Style. UCI made its 8x8 digits from 32x32 bitmaps, scaled so that the ink fills the box from top to bottom, by counting
black pixels in 4x4 blocks (0..16). Printed characters go the same way: a large bitmap, turned, cut to its ink, scaled
to 32 rows, thickened to a pen's width, counted.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from itertools import permutations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from windtunnel.images import sources
from windtunnel.images.keyed import Draws, keys_of, mix

LETTERS = "ACEFHKMNPRVWY"  # chosen before any model was run: what no one takes for a digit
AMBIGUOUS = "BDGIJLOQSTUXZ"
DIGITS = "0123456789"
TURNABLE = (2, 3, 4, 5, 7)  # 0, 1, 6, 8, 9 turned may still be read as a digit or a bar
# degrees: (sine, cosine) in 1/1024
ANGLES = {
    -15: (-265, 989), -10: (-178, 1008), -5: (-89, 1020), 0: (0, 1024), 5: (89, 1020), 10: (178, 1008), 15: (265, 989),
}  # fmt: skip
PEN = {"regular": 1, "bold": 0}  # of 32 pixels, grown on every side
WIDEST = 20  # of 32 columns; with the pen it gives ink 5.0 of 16 in 6.0 columns on average, written digits 4.9 in 5.9
_EM = 128


@cache
def _bitmap(character: str, font: str) -> np.ndarray:
    """A character as a large bitmap, bool, with room to turn."""
    face = ImageFont.truetype(io.BytesIO(sources.font_bytes(font)), _EM, layout_engine=ImageFont.Layout.BASIC)
    canvas = Image.new("L", (2 * _EM, 2 * _EM), 0)
    ImageDraw.Draw(canvas).text((_EM, _EM), character, fill=255, font=face, anchor="mm")
    return np.array(canvas) >= 128


def printed(character: str, font: str, angle: int) -> np.ndarray:
    """A printed character as a UCI-style glyph: uint8 [8, 8] in 0..16."""
    large = _bitmap(character, font)
    side = len(large)
    sine, cosine = ANGLES[angle]
    place = 2 * np.arange(side) - side + 1  # twice the distance from the centre
    row = (cosine * place[:, None] + sine * place[None, :]) // 2048 + side // 2
    column = (cosine * place[None, :] - sine * place[:, None]) // 2048 + side // 2
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    turned = large[np.clip(row, 0, side - 1), np.clip(column, 0, side - 1)] & inside

    pen = PEN["bold" if "Bold" in font else "regular"]
    rows, columns = np.flatnonzero(turned.any(axis=1)), np.flatnonzero(turned.any(axis=0))
    ink = turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height = 32 - 2 * pen
    width = max(1, min(WIDEST - 2 * pen, (ink.shape[1] * height * 2 + ink.shape[0]) // (2 * ink.shape[0])))
    ink = ink[((2 * np.arange(height) + 1) * ink.shape[0] // (2 * height))[:, None],
              ((2 * np.arange(width) + 1) * ink.shape[1] // (2 * width))[None, :]]  # fmt: skip
    box = np.zeros((32, 32), dtype=bool)
    left = (32 - width) // 2
    box[pen : pen + height, left : left + width] = ink
    box = _thicken(box, pen)
    return box.reshape(8, 4, 8, 4).sum(axis=(1, 3)).astype(np.uint8)


def _thicken(box: np.ndarray, pen: int) -> np.ndarray:
    """Every ink pixel grown to a disc-like pen of this radius."""
    grown = box.copy()
    for dy in range(-pen, pen + 1):
        for dx in range(-pen, pen + 1):
            if dy * dy + dx * dx <= pen * pen + 1:
                grown |= np.roll(box, (dy, dx), axis=(0, 1))
    return grown


def printed_set(characters: str, count: int, name: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """``count`` different (character, source, glyph), each character equally often; the choice is keyed by ``name``.

    The source is character and font: two angles of one letter are not independent.
    """
    variants = [(font, angle) for font in sources.FONTS for angle in ANGLES]
    for index, character in enumerate(characters):
        share = count // len(characters) + (index < count % len(characters))
        # a slashed zero is another character
        known = [(f, a) for f, a in variants if not (character == "0" and "Mono" in f)]
        order = np.argsort(keys_of(f"{name}/{character}/{font}/{angle}" for font, angle in known), kind="stable")
        if share > len(known):
            raise ValueError(f"{share} variants of '{character}' asked for, {len(known)} exist")
        for i in sorted(order[:share].tolist()):
            font, angle = known[i]
            yield character, f"{character}-{font}", printed(character, font, angle)


def scramble(glyphs: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Permute the 4x4 quadrants of every glyph uint8 [N, 8, 8], by one of the nine permutations that move all four."""
    orders = np.array([p for p in permutations(range(4)) if all(to != at for at, to in enumerate(p))])
    order = orders[Draws(mix(keys)).integers(0, len(orders))]
    quadrants = glyphs.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)
    moved = np.take_along_axis(quadrants, order[:, :, None, None], axis=1)
    return moved.reshape(-1, 2, 2, 4, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)


def quarter_turn(glyphs: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Turn every glyph by 90 degrees, left or right as drawn."""
    left = Draws(mix(keys)).integers(0, 2).astype(bool)
    return np.where(left[:, None, None], np.rot90(glyphs, 1, axes=(1, 2)), np.rot90(glyphs, 3, axes=(1, 2)))
