"""A user's own pictures: a folder with one sub-folder per class becomes an image set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from windtunnel.images.container import ImageSet, OnBadImage
from windtunnel.images.decode import MAX_PIXELS, ImageSetError, decode_image


def from_folder(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    *,
    on_bad_image: OnBadImage = "error",
    max_pixels: int = MAX_PIXELS,
) -> tuple[ImageSet, list[str]]:
    """Read ``folder/<class>/**/<image>`` and return the set and one sentence per skipped file.

    ``classes``: class names in the order of the model's outputs; by default the sub-folders, sorted. A folder without
    sub-folders is a set without labels (out-of-distribution data). Names that begin with a dot are ignored; any other
    file that is no image is bad. sample_id and source_id are the path within ``folder``: where several files show one
    object or come from one recording, set ``source_ids`` yourself, or intervals will be too narrow. Nothing is
    resized: all images must have one size.

        image_set, skipped = from_folder("my-images", classes=["cat", "dog"])
        write_images("my-images.parquet", image_set, metadata={"classes": ["cat", "dog"]})
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageSetError(f"'{folder}' is no folder; name the folder that holds one sub-folder per class")
    if on_bad_image not in ("error", "skip"):
        raise ImageSetError(f"on_bad_image is '{on_bad_image}'; allowed: error, skip")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    names = list(classes) if classes is not None else found
    unknown, empty = [n for n in found if n not in names], [n for n in names if n not in found]
    if unknown or empty:
        raise ImageSetError(
            f"'{folder}': sub-folders that are no class: {unknown}; classes without a sub-folder: {empty}; "
            f"make the two agree"
        )
    loose = sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    if names and loose:
        raise ImageSetError(f"'{folder}/{loose[0]}' lies beside the class folders; move it into one")

    files = [(path, label) for label, name in enumerate(names) for path in _files(folder / name)]
    files = files or [(path, None) for path in _files(folder)]
    pixels: list[np.ndarray] = []
    kept: list[tuple[str, int | None]] = []
    skipped: list[str] = []
    for path, label in files:
        name = path.relative_to(folder).as_posix()
        try:
            decoded = decode_image(path.read_bytes(), max_pixels=max_pixels)
        except ImageSetError as problem:
            if on_bad_image == "error":
                raise ImageSetError(f"'{path}': {problem}, or set on_bad_image to 'skip'") from problem
            skipped.append(f"'{path}': {problem}")
            continue
        if pixels and decoded.shape != pixels[0].shape:
            raise ImageSetError(
                f"'{path}': {decoded.shape[1]} x {decoded.shape[0]} pixels, but '{kept[0][0]}' has "
                f"{pixels[0].shape[1]} x {pixels[0].shape[0]}; resize all images to one size"
            )
        pixels.append(decoded)
        kept.append((name, label))
    if not pixels:
        raise ImageSetError(f"'{folder}' holds no usable image ({len(skipped)} skipped)")
    ids = [name for name, _ in kept]
    labels = np.array([label for _, label in kept], dtype=np.int32) if names else None
    return ImageSet(np.stack(pixels), labels, ids, list(ids)), skipped


def _files(folder: Path) -> list[Path]:
    inside = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in inside if not any(part.startswith(".") for part in p.relative_to(folder).parts))
