"""From rows of ``metrics`` to the fields of a printed line: value, interval, spread, footnotes, and where it was
measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.select import PLACE, Outcomes, absent, full_name, threat_order


def put(line: dict[str, Any], key: str, row: pd.Series | None, *, notes: Iterable[str] = (), why: str = "") -> None:
    """An estimate with interval, footnotes and, where it is absent, the reason."""
    line[key] = None if row is None else float(row["value"])
    line[f"{key}_low"] = None if row is None or absent(row["ci_low"]) else float(row["ci_low"])
    line[f"{key}_high"] = None if row is None or absent(row["ci_high"]) else float(row["ci_high"])
    line[f"{key}_notes"] = " ".join(notes) if row is not None else ""
    if why:
        line[f"{key}_why"] = why if row is None else ""


def put_seeds(line: dict[str, Any], key: str, row: pd.Series | None) -> None:
    """A mean over training seeds: value, interval over seeds, standard deviation."""
    put(line, key, row)
    line[f"{key}_sd"] = None if row is None or absent(row["seed_sd"]) else float(row["seed_sd"])


def p_adjusted(row: pd.Series | None) -> float | None:
    return None if row is None or absent(row["p_adjusted"]) else float(row["p_adjusted"])


def count(row: pd.Series | None, name: str = "n") -> int | None:
    return None if row is None or absent(row[name]) else int(row[name])


def frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows in the order given; columns that are empty throughout go, except estimates (value, low, high)."""
    frame = pd.DataFrame(lines)
    optional = [c for c in frame.columns if c.endswith(("_notes", "_why", "_sd"))]
    return frame.drop(columns=[c for c in optional if all(absent(v) or v == "" for v in frame[c])])


def footnotes(names: Iterable[str], own: Mapping[str, str] | None = None) -> dict[str, str]:
    """Texts of the footnotes that some number bears: ``own`` ones of the table first, then those of the checks."""
    names = list(names)
    first = {name: text for name, text in (own or {}).items() if name in names}
    return first | _of_checks(n for n in names if n not in first)


def _of_checks(names: Iterable[str]) -> dict[str, str]:
    known = list(dict.fromkeys(names))
    order = [n for n in words.check_names() if n in known]
    order += sorted(n for n in known if n not in order)
    notes = {}
    for name in order:
        check = words.check_words(name)
        notes[name] = f"{check.title}: {check.meaning}"
    return notes


def notes_in(lines: list[dict[str, Any]]) -> list[str]:
    return [n for line in lines for key, text in line.items() if key.endswith("_notes") and text for n in text.split()]


def bounded(outcomes: Outcomes, row: pd.Series | None) -> list[str]:
    """Notes of a number found through a defense: the dagger 'upper bound' first, then the checks."""
    bound = [words.UPPER_BOUND] if row is not None and words.is_upper_bound(row["note"]) else []
    return [*bound, *outcomes.flags(row)]


def match(place: dict[str, Any]) -> dict[str, Any]:
    """Keys for ``only``: a null seed is looked up as null."""
    return {k: (None if absent(v) else v) for k, v in place.items() if k in PLACE}


def place_words(place: Any) -> dict[str, Any]:
    return {
        "images": words.image_set(place["dataset"], place["split"]),
        "model": full_name(place["model"], place["model_seed"]),
    }


def ordered(keys: pd.DataFrame, *extra: str) -> list[dict[str, Any]]:
    records = keys.drop_duplicates().to_dict("records")
    return sorted(
        records,
        key=lambda r: (
            r["dataset"], r["split"], r["model"], -1 if absent(r["model_seed"]) else int(r["model_seed"]),
            *(threat_order(r[e]) for e in extra),
        ),
    )  # fmt: skip
