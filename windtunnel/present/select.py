"""Which rows of ``metrics`` and ``cells`` a table or figure speaks of. Frames in, frames out; the kinds are in
docs/results.md.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from windtunnel.models.spec import model_name

PLACE = ["dataset", "split", "model", "model_seed"]
"""Where a number was measured: image set and model. Everything compared with each other shares these."""

TEXT = (
    "cell_id", "group_id", "reference_cell_id", "baseline_cell_id", "dataset", "split", "role", "shift", "against",
    "model", "source_model", "attack", "threat", "attack_defense", "defense", "through", "mode", "iterate", "score",
    "metric", "note", "status", "reason", "flags",
)  # fmt: skip
UNWARPED = ("", "none")
ITERATES = ("best", "first", "last", "none", "")
CLEAN = "none"


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy in which absent text is '' whatever reader made the frame, and a missing known column is there and
    empty.
    """
    frame = frame.copy()
    for name in TEXT:
        if name in frame.columns:
            column = frame[name].astype(object)
            frame[name] = column.where(column.notna(), "")
        else:
            frame[name] = ""
    if "members" not in frame.columns:
        frame["members"] = None
    return frame.reset_index(drop=True)


def only(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Rows equal to every wanted value; a tuple stands for any of its values, None for a null."""
    keep = pd.Series(True, index=frame.index)
    for name, value in wanted.items():
        if value is None:
            keep &= frame[name].isna()
        elif isinstance(value, tuple):
            keep &= frame[name].isin(value)
        else:
            keep &= frame[name] == value
    return frame[keep]


def absent(value: Any) -> bool:
    """None, NaN and NA alike."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def in_distribution(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows on unshifted in-distribution sets."""
    return only(frame, role=("id", ""), shift=UNWARPED)


def cell_rows(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one cell each, for one metric without a score and without a baseline."""
    return metrics[
        (metrics["cell_id"] != "")
        & (metrics["score"] == "")
        & (metrics["baseline_cell_id"] == "")
        & (metrics["metric"] == metric)
        & metrics["value"].notna()
    ]


def clean_rows(metrics: pd.DataFrame, metric: str = "accuracy") -> pd.DataFrame:
    """One metric of clean in-distribution cells, any defense."""
    return only(in_distribution(cell_rows(metrics, metric)), attack=CLEAN)


def attacked_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of attacked in-distribution cells that are not transfer, best iterate first within equal keys."""
    rows = in_distribution(cell_rows(metrics, "accuracy"))
    rows = rows[(rows["attack"] != CLEAN) & (rows["attack"] != "")]
    return by_iterate(rows[~is_transfer(rows)])


def by_iterate(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorted so that the first of otherwise equal rows is the one to show: best iterate, then the lowest accuracy."""
    rank = rows["iterate"].map({name: i for i, name in enumerate(ITERATES)}).fillna(len(ITERATES))
    return rows.assign(_rank=rank).sort_values(["_rank", "value"], kind="stable").drop(columns="_rank")


def is_transfer(rows: pd.DataFrame) -> pd.Series:
    """Whether the attacked model was another one than the judged."""
    own = [full_name(m, s) for m, s in zip(rows["model"], rows["model_seed"], strict=True)]
    return (rows["source_model"] != "") & (rows["source_model"] != pd.Series(own, index=rows.index, dtype=object))


def full_name(model: str, seed: Any) -> str:
    """A model with its training seed, as ``source_model`` writes it."""
    return model if absent(seed) else model_name(model, int(seed))


def robust_rows(metrics: pd.DataFrame, against: str) -> pd.DataFrame:
    """Robust accuracy of in-distribution groups, against ``bare``, ``unaware``, ``through`` or ``all``."""
    rows = only(in_distribution(metrics), metric="robust_accuracy", against=against)
    return rows[(rows["group_id"] != "") & rows["value"].notna() & rows["model_seed"].notna()]


def by_attack_rows(metrics: pd.DataFrame, against: str) -> pd.DataFrame:
    """The same for one attack alone, over its iterates and rules."""
    rows = only(in_distribution(metrics), metric="robust_accuracy_by_attack", against=against, through="")
    return rows[(rows["group_id"] != "") & rows["value"].notna() & rows["model_seed"].notna()]


def worst_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Undefended worst cases: over every candidate (transferred images included) where there is one, else over bare
    attacks."""
    rows = pd.concat([robust_rows(metrics, "all"), robust_rows(metrics, "bare")])
    return only(rows, defense=("none", "")).drop_duplicates([*PLACE, "threat"])


def seed_means(metrics: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Means over training seeds of one metric."""
    rows = metrics[(metrics["metric"] == metric) & (metrics["group_id"] != "") & metrics["model_seed"].isna()]
    return rows[rows["seeds"].fillna(0) > 1]


def first(frame: pd.DataFrame, **wanted: Any) -> pd.Series | None:
    """The first row that matches, or None."""
    rows = only(frame, **wanted)
    return None if rows.empty else rows.iloc[0]


def winners(metrics: pd.DataFrame, row: pd.Series) -> pd.DataFrame:
    """Of a group's members the accuracy rows of those with the lowest accuracy (several where they tie)."""
    members = row["members"]
    if members is None or absent(members) or len(members) == 0:
        return metrics.iloc[:0]
    rows = cell_rows(metrics, "accuracy")
    rows = rows[rows["cell_id"].isin(list(members)) & (rows["attack"] != CLEAN)]
    return rows[rows["value"] == rows["value"].min()]


def raised(cells: pd.DataFrame, cell_id: str) -> tuple[str, ...]:
    """Names of the checks raised on a cell."""
    rows = cells[cells["cell_id"] == cell_id]
    return tuple(rows.iloc[0]["flags"].split()) if len(rows) else ()


def raised_on_all(cells: pd.DataFrame, cell_ids: list[str]) -> tuple[str, ...]:
    """Checks raised on every one of several cells: what stays doubtful about a number that any of them supports."""
    if not cell_ids:
        return ()
    names = [raised(cells, c) for c in cell_ids]
    return tuple(n for n in names[0] if all(n in other for other in names[1:]))


def threat_order(name: str) -> tuple[str, float]:
    """Sorts ``linf-2`` before ``linf-16`` and before ``l2-0.5``."""
    norm, _, size = name.partition("-")
    try:
        return ({"linf": "0", "l2": "1"}.get(norm, "2") + norm, float(size))
    except ValueError:
        return ("3" + norm, 0.0)
