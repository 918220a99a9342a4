"""A model's folder: weights, card, the user's own module; checked when read, whole when written. Standard library only,
so that copying shipped weights takes no longer than the copy.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

WEIGHTS, CARD, MODULE = "weights.safetensors", "card.json", "model.py"


class BadWeights(RuntimeError):
    """Weights that are not those of their card; the message names the file, both digests and what to do."""


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
    found = "no such file"
    if path.is_file():
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise BadWeights(f"'{path}' is not the file its card describes: expected {expected}, found {found}; {remedy}")


def check_folder(folder: Path, card: dict[str, Any], *, remedy: str = "") -> None:
    """Check every file that the card names."""
    remedy = remedy or f"delete '{folder}' and provide the model again"
    check_file(folder / WEIGHTS, card["weights"]["sha256"], remedy=remedy)
    if "module" in card:
        check_file(folder / MODULE, card["module"]["sha256"], remedy=remedy)


def copy_folder(source: Path, out: Path) -> None:
    """Copy shipped weights and their card. Raises ``BadWeights`` if they do not belong together.

    A damaged checkout must not be papered over by ten minutes of training.
    """
    card = load_card(source)
    check_folder(
        source, card, remedy=f"restore '{source}' from version control, or delete it to have the model trained"
    )
    write_folder(out, files={WEIGHTS: (source / WEIGHTS).read_bytes()}, card=card)


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


if __name__ == "__main__":
    try:
        copy_folder(*(Path(card).parent for card in sys.argv[1:3]))
    except BadWeights as error:
        sys.exit(f"windtunnel: model_copy {Path(sys.argv[2]).parent.name}: {error}")
