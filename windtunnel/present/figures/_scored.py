"""Which samples the score figures draw: one model, its ID set, near and far sets, and one attacked set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from windtunnel.present.select import CLEAN, UNWARPED, full_name, only, threat_order, tidy
from windtunnel.store import score_column

DEFAULT_SCORES = ("msp", "abet-unablated", "abet", "energy")
"""Of two that give every image the same number (energy is AbeT on an AbeT net) the first is drawn."""


@dataclass(frozen=True)
class Group:
    """Samples of one role: ``values`` [N] of a score and ``weights`` [N] that give every set of the role the same
    say.
    """

    values: np.ndarray
    weights: np.ndarray
    sets: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """One model's clean, undefended scores by role, and the attack whose images stand beside them."""

    model: str
    seed: int
    dataset: str
    scores: tuple[str, ...]
    frame: pd.DataFrame
    adversarial: pd.DataFrame
    attack: str
    threat: str

    @property
    def name(self) -> str:
        """Model with its seed."""
        return full_name(self.model, self.seed)

    def group(self, role: str, score: str) -> Group:
        """``id``, ``near_ood``, ``far_ood`` or ``adversarial``."""
        rows = self.adversarial if role == "adversarial" else self.frame[self.frame["role"] == role]
        column = rows[score_column(score)].astype(float)
        rows, column = rows[np.isfinite(column)], column[np.isfinite(column)]
        sizes = rows.groupby("split")["split"].transform("size").to_numpy(float)
        sets = tuple(sorted(rows["split"].unique()))
        return Group(column.to_numpy(float), 1.0 / (sizes * max(1, len(sets))), sets)


def scored(samples: pd.DataFrame, wanted: tuple[str, ...] = DEFAULT_SCORES, model: str | None = None) -> Scored | None:
    """The model to draw: the wanted one, else that with most of the wanted scores (lowest seed, then by name); or None.

    The attacked set is the best iterate of a ``full``, bare attack on that model, at the largest linf budget up to
    8/255: ``search`` images would sit just over the boundary and flatter every score.
    """
    columns = [c for c in (score_column(s) for s in wanted) if c in samples.columns]
    if not columns or samples.empty:
        return None
    keep = ["dataset", "split", "role", "shift", "model", "model_seed", "source_model", "attack", "threat", "mode",
    "iterate", "attack_defense", "defense", "cell_id"]  # fmt: skip
    rows = tidy(samples[[*keep, *columns]])
    rows = only(rows, defense="none", attack_defense=("none", ""), shift=UNWARPED)
    clean = only(rows, attack=CLEAN, role=("id", "near_ood", "far_ood"))
    if model is not None:
        clean = clean[clean["model"] == model]
    found = []
    for (dataset, name, seed), part in clean.groupby(["dataset", "model", "model_seed"], sort=True):
        have = _distinct(part, [s for s in wanted if score_column(s) in columns])
        ood = part[part["role"] != "id"]
        if have and len(ood) and (part["role"] == "id").any():
            found.append((-len(have), int(seed), name, dataset, have, part))
    if not found:
        return None
    _, seed, name, dataset, have, part = min(found, key=lambda f: f[:4])
    attacked = rows[(rows["attack"] != CLEAN) & (rows["source_model"] == full_name(name, seed))]
    attacked = only(attacked, model=name, model_seed=seed, dataset=dataset, role="id", mode="full", iterate="best")
    attacked = attacked[attacked[[score_column(s) for s in have]].notna().any(axis=1)]
    attacked = attacked[~attacked["attack"].str.contains("noise")]
    cells = attacked[["cell_id", "attack", "threat"]].drop_duplicates("cell_id").to_dict("records")
    cells.sort(key=lambda c: (_preference(c["threat"]), c["attack"], c["cell_id"]))
    chosen = attacked[attacked["cell_id"] == cells[0]["cell_id"]] if cells else attacked.iloc[:0]
    return Scored(
        name, seed, dataset, have, part, chosen, *((cells[0]["attack"], cells[0]["threat"]) if cells else ("", ""))
    )


def _distinct(part: pd.DataFrame, wanted: list[str]) -> tuple[str, ...]:
    """The scores that this model has, without those that repeat another's numbers."""
    have: list[str] = []
    for score in wanted:
        column = part[score_column(score)].to_numpy(float)
        if np.isfinite(column).any() and not any(
            np.array_equal(column, part[score_column(other)].to_numpy(float), equal_nan=True) for other in have
        ):
            have.append(score)
    return tuple(have)


def _preference(threat: str) -> tuple[float, float]:
    norm, size = threat_order(threat)
    return (0.0 if norm.startswith("0") and size <= 8 else 1.0, -size)


def curve(inside: Group, outside: Group) -> tuple[np.ndarray, np.ndarray]:
    """ROC: share of ID flagged, share of OOD flagged, for every threshold from the highest down; ties move together."""
    values = np.concatenate([inside.values, outside.values])
    order = np.argsort(-values, kind="stable")
    is_id = np.concatenate([np.ones(len(inside.values), bool), np.zeros(len(outside.values), bool)])[order]
    weight = np.concatenate([inside.weights, outside.weights])[order]
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    x = np.cumsum(np.where(is_id, weight, 0.0))[last]
    y = np.cumsum(np.where(is_id, 0.0, weight))[last]
    return np.concatenate([[0.0], x / x[-1]]), np.concatenate([[0.0], y / y[-1]])
