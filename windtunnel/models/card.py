"""What stands beside the weights: a card without a timestamp, and the check that the two belong together. No torch."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from windtunnel.models.spec import ALGORITHM_VERSION, ModelSpec, data_identity, recipe_digest
from windtunnel.store import file_digest

WEIGHTS, CARD, MODULE = "weights.safetensors", "card.json", "model.py"
CARD_VERSION = 1
LICENCE = "MIT"


class BadWeights(RuntimeError):
    """Weights that are not those of their card; the message names the file, both digests and what to do."""


def make_card(
    spec: ModelSpec,
    *,
    origin: str,
    head: dict[str, Any] | None,
    feature_dim: int | None,
    parameters: int,
    metrics: dict[str, Any] | None,
    weights: bytes,
    dtype: str,
    has_nan: bool,
    made_with: dict[str, str],
) -> dict[str, Any]:
    """The card of freshly made weights. ``origin``: ``shipped`` | ``trained`` | ``file``; absent values are None.

    ``head`` names the tensors in the weights file that make up the head (see ``windtunnel.models.arrays.fold``).
    """
    import hashlib

    return {
        "card_version": CARD_VERSION,
        "name": spec.name,
        "architecture": spec.architecture,
        "head": head,
        "feature_dim": feature_dim,
        "classes": spec.classes,
        "class_names": list(spec.class_names),
        "parameters": parameters,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "algorithm_version": ALGORITHM_VERSION,
        "recipe_digest": recipe_digest(spec),
        "data": data_identity(spec.dataset),
        "metrics": metrics,
        "weights": {
            "file": WEIGHTS,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "dtype": dtype,
        },
        "has_nan": has_nan,
        "made_with": made_with,
        "licence": LICENCE if spec.architecture != "file" else None,
        "origin": origin,
    }


def load_card(folder: Path) -> dict[str, Any]:
    """The card of a model folder."""
    path = folder / CARD
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadWeights(f"no model in '{folder}': {CARD} is missing; run the rule model_provide") from None
    except ValueError as error:
        raise BadWeights(f"'{path}' is not JSON ({error}); delete the folder and provide the model again") from None


def check_file(path: Path, expected: str, *, remedy: str) -> None:
    """Raise ``BadWeights`` unless the file is there and has the expected SHA-256."""
    found = file_digest(path) if path.is_file() else "no such file"
    if found != expected:
        raise BadWeights(f"'{path}' is not the file its card describes: expected {expected}, found {found}; {remedy}")


def check_folder(folder: Path, card: dict[str, Any], *, remedy: str = "") -> None:
    """Check every file that the card names."""
    remedy = remedy or f"delete '{folder}' and provide the model again"
    check_file(folder / WEIGHTS, card["weights"]["sha256"], remedy=remedy)
    if "module" in card:
        check_file(folder / MODULE, card["module"]["sha256"], remedy=remedy)


def card_bytes(card: dict[str, Any]) -> bytes:
    """The card as it is written: sorted, indented, one newline at the end."""
    return (json.dumps(card, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_folder(folder: Path, *, files: dict[str, bytes], card: dict[str, Any]) -> None:
    """Write the files, then the card, each under a temporary name first; a card never precedes what it describes."""
    folder.mkdir(parents=True, exist_ok=True)
    # An old card beside new weights would be a lie if we were killed in between.
    (folder / CARD).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_atomically(folder / CARD, card_bytes(card))


def write_atomically(path: Path, content: bytes) -> None:
    """The whole file or nothing: unique temporary name in the same folder, flushed to disk, renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
