"""The image set every stage reads and writes, in memory and as one Parquet file.

A file has one row per image: ``image: struct<bytes: binary, path: string>`` (PNG when written here), ``label: int32``
(null where there is none), ``sample_id: string``, ``source_id: string``, ``sha256: string`` (of the decoded pixels).
pandas and DuckDB read it as it is; Hugging Face ``datasets`` decodes the image column, because the schema says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from windtunnel.images.decode import MAX_PIXELS, ImageSetError, decode_image, encode_png, image_size

__all__ = ["ImageSet", "ImageSetError", "pixel_hash", "read_images", "read_metadata", "write_images"]

FORMAT_VERSION = 1
MAX_SET_BYTES = 16 * 2**30
SCHEMA = pa.schema([
    ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ("label", pa.int32()),
    ("sample_id", pa.string()),
    ("source_id", pa.string()),
    ("sha256", pa.string()),
])  # fmt: skip
_FEATURES = {"image": {"_type": "Image"}, "label": {"dtype": "int32", "_type": "Value"}} | {
    name: {"dtype": "string", "_type": "Value"} for name in ("sample_id", "source_id", "sha256")
}
_OWN_KEY, _HUGGINGFACE_KEY = b"windtunnel", b"huggingface"
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True)
class ImageSet:
    """Images of one size with their labels and origins.

    ``images``: uint8 [N, H, W, 3], RGB. ``labels``: int32 [N], or None where the set has none.
    ``sample_ids``: unique names. ``source_ids``: what a sample was made from (a glyph, a region of a photograph):
    samples that share a source are not independent, so intervals resample sources. Arrays become read-only.
    """

    images: np.ndarray
    labels: np.ndarray | None
    sample_ids: list[str]
    source_ids: list[str]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise ImageSetError(f"images must be uint8 [N, H, W, 3], not {self.images.dtype} {self.images.shape}")
        if self.labels is not None and (self.labels.dtype != np.int32 or self.labels.ndim != 1):
            raise ImageSetError(f"labels must be int32 [N] or None, not {self.labels.dtype} {self.labels.shape}")
        for name in ("labels", "sample_ids", "source_ids"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.images):
                raise ImageSetError(f"{len(self.images)} images but {len(values)} {name}")
        _refuse_duplicates(self.sample_ids, "image set")
        for array in (self.images, self.labels):
            if array is not None:
                array.flags.writeable = False  # the digest names these pixels: nothing later may change them

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash per image, see ``pixel_hash``."""
        return [pixel_hash(image) for image in self.images]

    def digest(self) -> str:
        """SHA-256 over pixels, labels and identifiers, in order; independent of the file they came from."""
        total = hashlib.sha256(f"image set {tuple(self.images.shape)}\n".encode())
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        for row in zip(self.hashes, labels, self.sample_ids, self.source_ids, strict=True):
            total.update(json.dumps(row).encode() + b"\n")
        return total.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """The numbered rows, in that order, as a new image set."""
        chosen = np.asarray(rows, dtype=np.int64)
        return ImageSet(
            images=self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            sample_ids=[self.sample_ids[i] for i in chosen],
            source_ids=[self.source_ids[i] for i in chosen],
        )


def pixel_hash(image: np.ndarray) -> str:
    """SHA-256 of shape and pixels, uint8 [H, W, 3]: the same for every lossless file format."""
    return hashlib.sha256(f"uint8 {tuple(image.shape)} ".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def write_images(path: str | Path, image_set: ImageSet, *, metadata: Mapping[str, Any]) -> Path:
    """Write an image set as Parquet, atomically: the name appears only when all bytes are on the disk.

    ``metadata``: anything JSON can hold (recipe, source digest, class names); it is stored with the set's digest and
    comes back from ``read_metadata``. Identical input gives identical bytes.
    """
    path = Path(path)
    own = {"format_version": FORMAT_VERSION, "digest": image_set.digest(), "metadata": dict(metadata)}
    notes = {
        _OWN_KEY: json.dumps(own, sort_keys=True),
        _HUGGINGFACE_KEY: json.dumps({"info": {"features": _FEATURES}}, sort_keys=True),
    }
    images = [
        {"bytes": encode_png(image), "path": f"{sample_id}.png"}
        for image, sample_id in zip(image_set.images, image_set.sample_ids, strict=True)
    ]
    labels = [None] * len(image_set) if image_set.labels is None else image_set.labels.tolist()
    columns = (images, labels, image_set.sample_ids, image_set.source_ids, image_set.hashes)
    table = pa.table(
        [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)],
        schema=SCHEMA.with_metadata(notes),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(unfinished, "wb") as stream:
            pq.write_table(table, stream, compression="zstd", compression_level=3, row_group_size=1024,
                           write_page_checksum=True)  # fmt: skip
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    except OSError as problem:
        raise ImageSetError(f"'{path}' cannot be written ({problem}); free space or choose another folder") from problem
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """``{"format_version", "digest", "metadata"}`` of a file written by ``write_images``; {} for a foreign file."""
    path = Path(path)
    try:
        return _own_notes(path, pq.read_schema(path))
    except (OSError, pa.ArrowException) as problem:
        raise _damaged(path, problem) from problem


def read_images(
    path: str | Path,
    *,
    on_bad_image: OnBadImage = "error",
    n_classes: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_set_bytes: int = MAX_SET_BYTES,
) -> tuple[ImageSet, list[str]]:
    """Read and check an image set; returns it and one sentence per skipped row.

    A bad row is an unreadable image, one of more than ``max_pixels``, pixels that do not match their hash, a label
    outside [0, n_classes) (below 0 where ``n_classes`` is None), or a missing value. ``on_bad_image``: ``error`` stops
    at the first, ``skip`` leaves them out and lists them. Duplicate sample_ids, mixed sizes, labels on some rows only,
    a set beyond ``max_set_bytes`` of pixels and a damaged file are always errors.
    """
    path = Path(path)
    if on_bad_image not in ("error", "skip"):
        raise ImageSetError(f"on_bad_image is '{on_bad_image}'; allowed: error, skip")
    table = _read_table(path)
    sample_ids = table["sample_id"].to_pylist()
    _refuse_duplicates([s for s in sample_ids if s is not None], f"'{path}'")
    unlabelled = table["label"].null_count == len(table)

    kept: list[int] = []
    pixels: list[np.ndarray] = []
    skipped: list[str] = []
    size: tuple[int, int] | None = None
    rows = zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True)
    for row, (image, label, sample_id, source_id, stored_hash) in enumerate(rows):
        where = f"'{path}', row {row}, sample '{sample_id}'"
        try:
            content = _checked_row(image, label, sample_id, source_id, stored_hash, unlabelled, n_classes)
            this_size = image_size(content, max_pixels)
            decoded = decode_image(content, max_pixels=max_pixels)
            if pixel_hash(decoded) != stored_hash:
                raise ImageSetError("the pixels do not match their sha256 (a flipped bit?); rebuild the file")
        except ImageSetError as problem:
            if on_bad_image == "error":
                raise ImageSetError(f"{where}: {problem}, or set on_bad_image to 'skip'") from problem
            skipped.append(f"{where}: {problem}")
            continue
        if size is None:
            size = this_size
            if size[0] * size[1] * 3 * len(table) > max_set_bytes:
                raise ImageSetError(f"'{path}': {len(table)} images of {size[1]} x {size[0]} need more than "
                                    f"max_set_bytes={max_set_bytes}; split the file or raise the limit")  # fmt: skip
        if this_size != size:
            raise ImageSetError(
                f"{where}: {this_size[1]} x {this_size[0]} pixels, but row {kept[0]} has {size[1]} x {size[0]}; "
                f"resize all images to one size"
            )
        kept.append(row)
        pixels.append(decoded)
    if not kept:
        raise ImageSetError(f"'{path}' holds no usable image: {(skipped or ['it is empty'])[0]}")
    labels = None if unlabelled else table["label"].take(kept).to_numpy().astype(np.int32)
    source_ids = table["source_id"].take(kept).to_pylist()
    image_set = ImageSet(np.stack(pixels), labels, [sample_ids[i] for i in kept], source_ids)
    recorded = _own_notes(path, table.schema).get("digest")
    if not skipped and recorded not in (None, image_set.digest()):
        raise ImageSetError(f"'{path}': labels or identifiers do not match the recorded digest; rebuild the file")
    return image_set, skipped


def _checked_row(
    image: dict[str, Any] | None, label: int | None, sample_id: str | None, source_id: str | None,
    stored_hash: str | None, unlabelled: bool, n_classes: int | None,
) -> bytes:  # fmt: skip
    missing = [n for n, v in (("sample_id", sample_id), ("source_id", source_id), ("sha256", stored_hash)) if not v]
    content = (image or {}).get("bytes")
    if not content:
        missing.append("image.bytes")
    if label is None and not unlabelled:
        missing.append("label")
    if missing:
        raise ImageSetError(f"no {', no '.join(missing)}; fill it in for every row")
    if label is not None and (label < 0 or (n_classes is not None and label >= n_classes)):
        upper = "" if n_classes is None else f" to {n_classes - 1}"
        raise ImageSetError(f"label {label} is out of range (0{upper}); correct it")
    return content


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ImageSetError(f"'{path}' does not exist; build it or correct the path")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            absent = [name for name in SCHEMA.names if name not in schema.names]
            if absent:
                raise ImageSetError(
                    f"'{path}' lacks the column(s) {', '.join(absent)}; it has {', '.join(schema.names)}; "
                    f"write it with windtunnel.images.write_images"
                )
            doubled = [name for name, count in Counter(schema.names).items() if count > 1 and name in SCHEMA.names]
            if doubled:
                raise ImageSetError(f"'{path}' has the column(s) {', '.join(doubled)} twice; keep one")
            table = file.read(columns=SCHEMA.names).select(SCHEMA.names)
    except (OSError, pa.ArrowException) as problem:
        raise _damaged(path, problem) from problem
    try:
        # pandas and other writers use large_string, int64 or another field order: the same values
        columns = [_cast(table[field.name], field) for field in SCHEMA]
    except (pa.ArrowException, KeyError, ValueError) as problem:
        wanted = ", ".join(f"{field.name}: {field.type}" for field in SCHEMA)
        raise ImageSetError(f"'{path}': a column has the wrong type ({problem}); expected {wanted}") from problem
    return pa.table(columns, schema=SCHEMA.with_metadata(table.schema.metadata))


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if field.name == "image":
        if not pa.types.is_struct(column.type):
            raise ValueError(f"image is {column.type}, not a struct of bytes and path")
        flat = column.combine_chunks()
        parts = [flat.field(part.name).cast(part.type) for part in field.type]
        return pa.chunked_array([pa.StructArray.from_arrays(parts, fields=list(field.type), mask=flat.is_null())])
    return column.cast(field.type)


def _own_notes(path: Path, schema: pa.Schema) -> dict[str, Any]:
    notes = (schema.metadata or {}).get(_OWN_KEY)
    try:
        return json.loads(notes) if notes is not None else {}
    except ValueError as problem:
        raise _damaged(path, problem) from problem


def _damaged(path: Path, problem: Exception) -> ImageSetError:
    return ImageSetError(f"'{path}' is no readable Parquet file or is damaged ({problem}); delete and rebuild it")


def _refuse_duplicates(sample_ids: Sequence[str], where: str) -> None:
    first: dict[str, int] = {}
    for row, sample_id in enumerate(sample_ids):
        if sample_id in first:
            raise ImageSetError(
                f"{where}: rows {first[sample_id]} and {row} share the sample_id '{sample_id}'; give every row its own"
            )
        first[sample_id] = row
