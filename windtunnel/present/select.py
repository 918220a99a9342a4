"""Which rows of ``metrics`` and ``cells`` a table or figure speaks of. Frames in, frames out; the kinds are in
docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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


@dataclass(frozen=True)
class Composed:
    """What the catalogue alone knows of names: the members of ``batteries`` (attacks, in their order) and of
    ``ensembles`` (models), which attacks look for the ``nearest`` adversarial image, and labels of ``diagnostics``."""

    batteries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensembles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nearest: frozenset[str] = frozenset()
    diagnostics: Mapping[str, str] = field(default_factory=dict)


SIMPLE = Composed()
"""A run without batteries and ensembles."""


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
    keep = np.ones(len(frame), dtype=bool)
    for name, value in wanted.items():
        column = frame[name].to_numpy()
        if value is None:
            keep &= pd.isna(column)
        elif isinstance(value, tuple):
            keep &= np.isin(column.astype(str), [str(v) for v in value])
        else:
            keep &= column == value
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


def diagnostic_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Means of what diagnostics measured, with columns ``diagnostic`` and ``quantity``; null values included."""
    rows = metrics[metrics["metric"].str.contains(".", regex=False) & metrics["model_seed"].notna()]
    split = [name.partition(".") for name in rows["metric"]]
    return rows.assign(diagnostic=[d for d, _, _ in split], quantity=[q for _, _, q in split])


def first(frame: pd.DataFrame, **wanted: Any) -> pd.Series | None:
    """The first row that matches, or None."""
    rows = only(frame, **wanted)
    return None if rows.empty else rows.iloc[0]


class Outcomes:
    """What single cells came to, looked up by id: accuracy, backward rule, raised checks. Built once per table."""

    def __init__(self, metrics: pd.DataFrame, cells: pd.DataFrame) -> None:
        rows = cell_rows(metrics, "accuracy")
        rows = rows[(rows["attack"] != CLEAN) & (rows["attack"] != "")]
        self._accuracy = dict(zip(rows["cell_id"], zip(rows["value"], rows["through"], strict=True), strict=True))
        self._flags = {c: tuple(text.split()) for c, text in zip(cells["cell_id"], cells["flags"], strict=True)}

    def raised(self, cell_id: str) -> tuple[str, ...]:
        """Names of the checks raised on a cell."""
        return self._flags.get(cell_id, ())

    def winners(self, row: pd.Series) -> list[str]:
        """Of a group's attacked members those with the lowest accuracy (several where they tie)."""
        members = row["members"]
        if members is None or absent(members):
            return []
        known = {m: self._accuracy[m][0] for m in members if m in self._accuracy}
        return [m for m, value in known.items() if value == min(known.values())]

    def rules(self, row: pd.Series) -> list[str]:
        """The backward rules that reach a group's lowest accuracy."""
        return sorted({self._accuracy[m][1] for m in self.winners(row)} - {"", "none"})

    def flags(self, row: pd.Series | None) -> tuple[str, ...]:
        """The checks that touch a number: of one cell its own; of a worst case those raised on *every* member that
        reaches the lowest accuracy.

        A masking rule raises its flag on its own cell; where another rule found less, the worst case is not touched.
        """
        if row is None:
            return ()
        names = [self.raised(c) for c in ([row["cell_id"]] if row["cell_id"] else self.winners(row))]
        return tuple(n for n in names[0] if all(n in other for other in names[1:])) if names else ()


def threat_order(name: str) -> tuple[str, float]:
    """Sorts ``linf-2`` before ``linf-16`` and before ``l2-0.5``."""
    norm, _, size = name.partition("-")
    try:
        return ({"linf": "0", "l2": "1"}.get(norm, "2") + norm, float(size))
    except ValueError:
        return ("3" + norm, 0.0)
