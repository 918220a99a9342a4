"""The arrays everything is composed of, read from the installed wheels: no download, no import of scikit-learn or
scikit-image (reading their files takes milliseconds, importing them seconds). docs/CREDITS-images.md names the authors.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from windtunnel.images.decode import ImageSetError

PHOTOGRAPHS = {"astronaut": "astronaut.png", "coffee": "coffee.png", "chelsea": "chelsea.png", "rocket": "rocket.jpg"}
SCIENCE = {"retina": "retina.jpg", "immunohistochemistry": "ihc.png", "hubble_deep_field": "hubble_deep_field.jpg"}
GRAINS = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
SCENES = {"china": "china.jpg", "flower": "flower.jpg"}
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
)  # fmt: skip
BLOCKS = {"train": (0, 1050), "fit": (1050, 1297), "test": (1297, 1797)}
TRAIN_SHARE = (3, 5)  # the left 60 % of every photograph's columns
_INNER = {"retina": slice(210, 1200)}  # rows and columns inside the round picture, without its black surround


def package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImageSetError(f"the package '{package}' is not installed; the built-in image sets are made from its data")
    path = Path(next(iter(spec.submodule_search_locations))).joinpath(*parts)
    if not path.is_file():
        raise ImageSetError(f"'{path}' is missing: this version of '{package}' no longer bundles '{parts[-1]}'; "
                            f"install the version in the lock file")  # fmt: skip
    return path


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits, in their order by writer: uint8 [1797, 8, 8] in 0..16, int64 [1797]."""
    raw = gzip.decompress(package_file("sklearn", "datasets", "data", "digits.csv.gz").read_bytes())
    table = np.loadtxt(io.BytesIO(raw), delimiter=",", dtype=np.int64)
    glyphs, labels = table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1]
    glyphs.flags.writeable = labels.flags.writeable = False
    return glyphs, labels


@cache
def picture(name: str) -> np.ndarray:
    """A bundled picture as RGB, uint8 [H, W, 3]."""
    for table in (PHOTOGRAPHS, SCIENCE, GRAINS):
        if name in table:
            path = package_file("skimage", "data", table[name])
            break
    else:
        path = package_file("sklearn", "datasets", "images", SCENES[name])
    with Image.open(path) as opened:
        pixels = np.array(opened.convert("RGB"))
    pixels.flags.writeable = False
    return pixels


@cache
def faces() -> np.ndarray:
    """The 100 faces of scikit-image's lfw_subset (its other 100 pictures are no faces): uint8 [100, 25, 25]."""
    stored = np.load(package_file("skimage", "data", "lfw_subset.npy"), allow_pickle=False)
    pixels = np.rint(stored[:100].astype(np.float64) * 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def font_bytes(name: str) -> bytes:
    """The TrueType file of one of ``FONTS``, as bundled with matplotlib."""
    return package_file("matplotlib", "mpl-data", "fonts", "ttf", f"{name}.ttf").read_bytes()


@cache
def region(name: str, part: str, factor: int = 1) -> np.ndarray:
    """A picture's ``train`` (left 60 %), ``test`` (right 40 %) or ``all`` columns, averaged over factor x factor
    pixels.

    The region is cut before it is averaged, so no pixel of one region enters the other.
    """
    inner = _INNER.get(name, slice(None))
    pixels = picture(name)[inner, inner]
    border = pixels.shape[1] * TRAIN_SHARE[0] // TRAIN_SHARE[1]
    part_pixels = {"train": pixels[:, :border], "test": pixels[:, border:], "all": pixels}[part]
    height, width = (side // factor for side in part_pixels.shape[:2])
    blocks = part_pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    small = (blocks.sum(axis=(1, 3), dtype=np.int64) * 2 + factor**2) // (2 * factor**2)
    small = small.astype(np.uint8)
    small.flags.writeable = False
    return small


def digest_of(arrays: dict[str, np.ndarray | bytes], version: int) -> str:
    """SHA-256 over named arrays and a recipe's version."""
    total = hashlib.sha256(f"recipe {version}\n".encode())
    for name in sorted(arrays):
        value = arrays[name]
        shape, content = ("bytes", value) if isinstance(value, bytes) else (value.shape, value.tobytes())
        total.update(f"{name} {shape} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def training_arrays() -> dict[str, np.ndarray | bytes]:
    """The arrays that training images are composed of."""
    glyphs, labels = digits()
    return {"digits": glyphs, "digit labels": labels} | {name: picture(name) for name in PHOTOGRAPHS}


def all_arrays() -> dict[str, np.ndarray | bytes]:
    """Every source array of the built-in sets."""
    pictures = {name: picture(name) for name in (*SCIENCE, *GRAINS, *SCENES)}
    return training_arrays() | pictures | {"faces": faces()} | {name: font_bytes(name) for name in FONTS}
