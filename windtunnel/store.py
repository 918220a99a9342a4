"""What is on disk: explicit Arrow schemas, atomic files, content-addressed parts, manifests, and ``load()``.

A *part* is one cell's file. Its name is the hash of the cell's settings and of the digests of everything it was made
from, so nothing stale survives a change; it is written under a unique temporary name, flushed to disk and renamed, so a
killed job leaves either the whole part or none. Every part carries a digest of its own content, checked on reading.
A *manifest* lists the parts of one job and is the only output that Snakemake knows of.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
ID_LENGTH = 12
METADATA_KEY = b"windtunnel"

STATUSES = ("ok", "nan", "bound", "error")


class StoreError(RuntimeError):
    """A file that cannot be read or written; the message names the file and the remedy."""


def canonical_json(value: Any) -> str:
    """The one text form of settings: sorted keys, no spaces, no NaN. Two equal settings have one text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value. Pure."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def short_id(value: Any) -> str:
    """The first 12 hex digits of the digest: names of cells and parts."""
    return digest(value)[:ID_LENGTH]


def file_digest(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            h.update(block)
    return h.hexdigest()


def write_atomic(path: Path | str, data: bytes) -> None:
    """Write all or nothing: unique temporary name beside the target, flush to disk, rename.

    A full disk or a file-size limit raises StoreError naming the file; the temporary file is removed and whatever stood
    under ``path`` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write '{path}' ({error.strerror or error}): free space or raise the limit, then run the same "
            f"command again; finished parts are kept"
        ) from error


def write_json(path: Path | str, value: Any) -> None:
    """A JSON file a person can read, written atomically, keys sorted."""
    write_atomic(path, (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path | str) -> Any:
    """A JSON file, or StoreError naming it."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read '{path}' ({error}): delete it and run the same command again") from error


def table_bytes(table: pa.Table, metadata: dict[str, Any] | None = None) -> bytes:
    """A Parquet file in memory: zstd, page checksums, no time stamp. Equal tables give equal bytes."""
    if metadata is not None:
        kept = dict(table.schema.metadata or {})
        kept[METADATA_KEY] = canonical_json(metadata).encode()
        table = table.replace_schema_metadata(kept)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=3, write_page_checksum=True, store_schema=True)
    return sink.getvalue().to_pybytes()


def write_table(path: Path | str, table: pa.Table, metadata: dict[str, Any] | None = None) -> None:
    """A Parquet file, written atomically."""
    write_atomic(path, table_bytes(table, metadata))


def read_table(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file with its page checksums verified, or StoreError naming it."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True).read(columns=list(columns) if columns else None)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise StoreError(f"cannot read '{path}' ({error}): delete it and run the same command again") from error


def table_metadata(table: pa.Table) -> dict[str, Any]:
    """The JSON that ``write_table`` put beside a table."""
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    return json.loads(raw) if raw else {}


def content_digest(table: pa.Table) -> str:
    """SHA-256 over a table's column names, types and values, whatever its file looks like."""
    h = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        h.update(f"{name}:{column.type}:{len(column)};".encode())
        sink = pa.BufferOutputStream()
        batch = pa.record_batch([column], names=[name])
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        h.update(sink.getvalue())
    return h.hexdigest()


# ---------------------------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Part:
    """One line of a manifest: which cell, in which file, with which content, and how it went."""

    key: str
    file: str | None
    sha256: str | None
    status: str
    reason: str | None = None
    rows: int = 0
    costs: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """The manifest entry. Costs are kept beside the parts, not in the manifest: they differ between two runs."""
        return {
            "file": self.file,
            "sha256": self.sha256,
            "status": self.status,
            "reason": self.reason,
            "rows": self.rows,
        }


def write_manifest(path: Path | str, plan_digest: str, parts: Iterable[Part]) -> None:
    """The one declared output of a job."""
    write_json(
        path,
        {
            "schema_version": SCHEMA_VERSION,
            "plan": plan_digest,
            "parts": {p.key: p.as_json() for p in sorted(parts, key=lambda p: p.key)},
        },
    )


def read_manifest(path: Path | str) -> dict[str, Part]:
    """Parts by cell key."""
    content = read_json(path)
    return {key: Part(key=key, **entry) for key, entry in content["parts"].items()}


def checked_file(manifest: Path | str, part: Part) -> Path:
    """The path of a part whose bytes are those of the manifest; a flipped bit is an error naming the file."""
    if part.file is None:
        raise StoreError(f"the part '{part.key}' of '{manifest}' has no file: {part.reason}")
    path = parts_folder(manifest) / part.file
    if not path.is_file() or file_digest(path) != part.sha256:
        raise StoreError(f"'{path}' is missing or damaged: run the same command again, it will be found and made again")
    return path


def part_table(manifest: Path | str, part: Part, columns: Sequence[str] | None = None) -> pa.Table:
    """A part's table, its bytes checked against the manifest."""
    return read_table(checked_file(manifest, part), columns)


def parts_folder(manifest: Path | str) -> Path:
    """Where the parts of a manifest lie: in a folder of its name; those of image sets (which have names) beside it."""
    path = Path(manifest)
    return path.parent if path.name in ("manifest.json", "shifted.json") else path.with_suffix("")


# -------------------------------------------------------------------------------------------------------------- schemas

_S, _I16, _I32, _I64, _F32, _F64, _B = (
    pa.string(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.float32(),
    pa.float64(),
    pa.bool_(),
)

ATTACKED_FIELDS: list[tuple[str, pa.DataType]] = [
    ("sample_id", _S),
    ("source_id", _S),
    ("label", _I32),
    ("best", pa.binary()),
    ("last", pa.binary()),
    ("success", _B),
    ("broken_by", _S),
    ("first_success", _I32),
    ("n_forward", _I64),
    ("n_backward", _I64),
    ("zero_gradient", _B),
    ("nan_gradient", _B),
    ("nan", _B),
    ("bound_violation", _B),
]
"""One row per attacked sample. ``best`` and ``last`` are raw pixels, CHW, uint8 (linf) or float32 (l2); ``broken_by``
is the attack (of a battery: the member) that fooled it."""

DEFENDED_FIELDS: list[tuple[str, pa.DataType]] = [
    ("sample_id", _S),
    ("source_id", _S),
    ("label", _I32),
    ("image", pa.binary()),
    ("psnr", _F32),
    ("ssim", _F32),
    ("bpp_file", _F32),
    ("bpp_payload", _F32),
]

SAMPLE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("schema_version", _I16),
    ("cell_id", _S),
    ("dataset", _S),
    ("split", _S),
    ("role", _S),
    ("shift", _S),
    ("severity", _I16),
    ("sample_id", _S),
    ("source_id", _S),
    ("label", _I32),
    ("model", _S),
    ("model_seed", _I16),
    ("source_model", _S),
    ("attack", _S),
    ("threat", _S),
    ("norm", _S),
    ("eps", _F64),
    ("eps_255", _I16),
    ("attack_seed", _I32),
    ("attack_defense", _S),
    ("through", _S),
    ("defense", _S),
    ("pred", _I32),
    ("correct", _B),
    ("conf", _F32),
    ("margin", _F32),
    ("linf", _F32),
    ("l2", _F32),
    ("psnr", _F32),
    ("ssim", _F32),
    ("bpp_file", _F32),
    ("bpp_payload", _F32),
    ("success_float", _B),
    ("mode", _S),
    ("iterate", _S),
    ("broken_by", _S),
    ("broken_at", _I32),
    ("p_correct", _F32),
    ("n_draws", _I32),
    ("defense_seed", _I32),
    ("n_forward", _I64),
    ("n_backward", _I64),
    ("zero_gradient", _B),
    ("nan_gradient", _B),
    ("status", _S),
    ("reason", _S),
]
"""One row per sample and cell; ``score_<name>`` columns (float64) follow, one per configured score.

``model`` is the family name without the training seed, which is ``model_seed``; ``source_model`` the full name (seed
included) of the model that was attacked, null without an attack. ``none`` names no attack, no threat, no defense;
``bare``
in ``through`` an attack that saw no defense, ``none`` no attack at all. ``linf`` and ``l2`` are distances of the image
*as stored* from the clean one; ``psnr`` and ``ssim`` compare what the model saw with the clean image.
"""

OBSERVED_FIELDS = [(n, t) for n, t in SAMPLE_FIELDS if n != "schema_version"] + [
    ("logits", pa.list_(_F32)),
    ("features", pa.list_(_F32)),
]

METRIC_FIELDS: list[tuple[str, pa.DataType]] = [
    ("cell_id", _S),
    ("group_id", _S),
    ("members", pa.list_(_S)),
    ("reference_cell_id", _S),
    ("baseline_cell_id", _S),
    ("dataset", _S),
    ("split", _S),
    ("role", _S),
    ("shift", _S),
    ("severity", _I16),
    ("against", _S),
    ("model", _S),
    ("model_seed", _I16),
    ("source_model", _S),
    ("attack", _S),
    ("threat", _S),
    ("eps", _F64),
    ("attack_defense", _S),
    ("defense", _S),
    ("through", _S),
    ("mode", _S),
    ("iterate", _S),
    ("score", _S),
    ("metric", _S),
    ("value", _F64),
    ("ci_low", _F64),
    ("ci_high", _F64),
    ("ci_method", _S),
    ("p_value", _F64),
    ("p_adjusted", _F64),
    ("n", _I64),
    ("n_id", _I64),
    ("n_ood", _I64),
    ("n_clusters", _I64),
    ("seeds", _I32),
    ("seed_sd", _F64),
    ("higher_is_better", _B),
    ("note", _S),
]

MEASURED_FIELDS: list[tuple[str, pa.DataType]] = [
    ("sample_id", _S),
    ("source_id", _S),
    ("quantity", _S),
    ("value", _F64),
]
"""One row per sample and quantity of one measurement; a value that is not defined for a sample is null."""

DIAGNOSTIC_FIELDS: list[tuple[str, pa.DataType]] = [
    ("dataset", _S),
    ("split", _S),
    ("shift", _S),
    ("severity", _I16),
    ("model", _S),
    ("model_seed", _I16),
    ("defense", _S),
    ("through", _S),
    ("threat", _S),
    ("norm", _S),
    ("eps", _F64),
    ("diagnostic", _S),
    ("method", _S),
    *MEASURED_FIELDS,
]
"""``diagnostics.parquet``: every measurement of the run with what it was made on."""

CERTIFICATE_FIELDS: list[tuple[str, pa.DataType]] = [
    ("sample_id", _S),
    ("source_id", _S),
    ("label", _I32),
    ("predicted", _I32),
    ("radius", _F64),
    ("correct", _B),
    ("chosen", _I32),
    ("agreeing", _I64),
    ("n_used", _I64),
]
"""One row per sample of one certificate. ``predicted`` and ``radius`` are null where it abstains (and ``correct`` is
false then); ``chosen`` is the class that the choosing draws voted for, ``agreeing`` how many of the ``n_used`` fresh
draws gave it."""

_CERTIFIED_KEY: list[tuple[str, pa.DataType]] = [
    ("dataset", _S),
    ("split", _S),
    ("model", _S),
    ("model_seed", _I16),
    ("defense", _S),
    ("sigma", _F64),
    ("choose_draws", _I64),
    ("draws", _I64),
    ("alpha", _F64),
    ("looks", pa.list_(_I64)),
    ("mode", _S),
    ("largest_radius", _F64),
]
CERTIFIED_FIELDS: list[tuple[str, pa.DataType]] = [*_CERTIFIED_KEY, *CERTIFICATE_FIELDS]
"""``certified.parquet``: every certificate of the run with what it was made of. ``mode`` is ``fixed`` or
``sequential``; ``largest_radius`` what (draws, alpha, sigma, looks) allow, null where they allow none."""

CERTIFIED_ACCURACY_FIELDS: list[tuple[str, pa.DataType]] = [
    *_CERTIFIED_KEY,
    ("metric", _S),
    ("radius", _F64),
    ("value", _F64),
    ("ci_low", _F64),
    ("ci_high", _F64),
    ("ci_method", _S),
    ("n", _I64),
    ("n_clusters", _I64),
]
"""``certified_accuracy.parquet``: means over samples; ``radius`` is null but for ``certified_accuracy``."""

COST_FIELDS: list[tuple[str, pa.DataType]] = [
    ("rule", _S),
    ("job", _S),
    ("part", _S),
    ("cell_id", _S),
    ("wall_seconds", _F64),
    ("cpu_seconds", _F64),
    ("gpu_seconds", _F64),
    ("peak_memory_mb", _F64),
    ("gradient_evaluations", _I64),
    ("device", _S),
]


def schema(fields: list[tuple[str, pa.DataType]], extra: Sequence[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    """The Arrow schema of a field list, every field nullable."""
    return pa.schema([pa.field(name, kind) for name, kind in [*fields, *extra]])


def score_column(score: str) -> str:
    """The column of a score: ``react-energy`` is ``score_react_energy``."""
    return "score_" + score.replace("-", "_")


def samples_schema(scores: Sequence[str]) -> pa.Schema:
    """The schema of every sample file of a run: the same columns in every file, whatever applies to its cells."""
    return schema(SAMPLE_FIELDS, [(score_column(s), _F64) for s in scores])


def table_from_columns(columns: dict[str, Any], wanted: pa.Schema) -> pa.Table:
    """A table of exactly the wanted schema; absent columns are null, scalars are repeated, unknown ones are refused.

    numpy arrays keep NaN as NaN; use masked arrays or lists with None for null.
    """
    unknown = sorted(set(columns) - set(wanted.names))
    if unknown:
        raise StoreError(f"columns {unknown} are not in the schema")
    lengths = {len(v) for v in columns.values() if isinstance(v, (list, np.ndarray, pa.Array, pa.ChunkedArray))}
    if len(lengths) > 1:
        raise StoreError(f"columns differ in length: {sorted(lengths)}")
    n = lengths.pop() if lengths else 0
    arrays = []
    for field in wanted:
        value = columns.get(field.name)
        arrays.append(_array(value, field.type, n))
    return pa.Table.from_arrays(arrays, schema=wanted)


def _array(value: Any, kind: pa.DataType, n: int) -> pa.Array:
    if value is None:
        return pa.nulls(n, kind)
    if isinstance(value, pa.ChunkedArray):
        return value.combine_chunks().cast(kind)
    if isinstance(value, pa.Array):
        return value.cast(kind)
    if isinstance(value, np.ma.MaskedArray):
        return pa.array(value.filled(0), type=kind, mask=np.ma.getmaskarray(value))
    if isinstance(value, np.ndarray) and value.ndim == 2:
        flat = pa.array(np.ascontiguousarray(value).reshape(-1), type=kind.value_type)
        offsets = pa.array(np.arange(0, value.size + 1, value.shape[1], dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, flat)
    if isinstance(value, np.ndarray):
        return pa.array(value.tolist() if value.dtype == object else value, type=kind, from_pandas=False)
    if isinstance(value, list):
        return pa.array(value, type=kind, from_pandas=False)
    return pa.array([value] * n, type=kind, from_pandas=False)


# ----------------------------------------------------------------------------------------------------------------- load


def load(path: str | Path = "results", table: str = "samples", columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A results table as a pandas frame: ``samples``, ``cells``, ``metrics``, ``diagnostics``, ``certified``,
    ``certified_accuracy`` or ``costs``.

    Refuses files of another schema version, and sample files whose columns differ, instead of guessing. Rows come in a
    fixed order (file name, then row).

    >>> metrics = windtunnel.load("results", "metrics")
    """
    base = Path(path)
    folder = base if base.name == "tables" else base / "tables"
    if table == "samples":
        files = sorted((folder / "samples").glob("*.parquet"))
        if not files:
            raise StoreError(f"no sample files in '{folder / 'samples'}': run 'snakemake' first")
        tables = [read_table(f, columns) for f in files]
        for file, content in zip(files, tables, strict=True):
            _check_version(file)
            if content.schema.names != tables[0].schema.names:
                raise StoreError(f"'{file}' has other columns than '{files[0]}': run 'snakemake' again to rewrite both")
        return pa.concat_tables(tables).to_pandas()
    file = folder / f"{table}.parquet"
    if not file.is_file():
        raise StoreError(
            f"no table '{file}': known tables are samples, cells, metrics, diagnostics, certified, "
            "certified_accuracy and costs; run 'snakemake' first"
        )
    _check_version(file)
    return read_table(file, columns).to_pandas()


def _check_version(file: Path) -> None:
    raw = (pq.read_schema(file).metadata or {}).get(METADATA_KEY)
    version = json.loads(raw).get("schema_version") if raw else None
    if version != SCHEMA_VERSION:
        raise StoreError(f"'{file}' has schema version {version}, this Windtunnel reads {SCHEMA_VERSION}: run it again")
