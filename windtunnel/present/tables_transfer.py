"""Images made on one model or on an ensemble, judged by others: source x target, one block per attack and threat."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import count, footnotes, frame, notes_in, put
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import (
    CLEAN,
    SIMPLE,
    Composed,
    Outcomes,
    by_iterate,
    cell_rows,
    first,
    full_name,
    in_distribution,
    is_transfer,
    only,
    threat_order,
    tidy,
)

WHITE_BOX, INSIDE = "white_box", "contains_target"
MARKS = {
    WHITE_BOX: "White box: the images were made on this very model (behind a defense: without knowing of it).",
    INSIDE: "The judged model is a member of the ensemble that the images were made on: no transfer.",
}
KEYS = ["dataset", "split", "attack", "threat", "defense"]


def transfer_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Accuracies on fully driven images of undefended sources, of every (image set, attack, threat, judging defense)
    with at least one transferred cell; one row per source and ``target``, best iterate before last.
    """
    rows = in_distribution(cell_rows(metrics, "accuracy"))
    rows = only(rows, attack_defense=("none", ""), mode="full")
    rows = rows[(rows["source_model"] != "") & (rows["attack"] != CLEAN)]
    rows = rows.assign(target=[full_name(m, s) for m, s in zip(rows["model"], rows["model_seed"], strict=True)])
    moved = set(map(tuple, rows[is_transfer(rows)][KEYS].to_numpy().tolist()))
    rows = rows[np.array([tuple(key) in moved for key in rows[KEYS].to_numpy().tolist()], dtype=bool)]
    return by_iterate(rows).drop_duplicates([*KEYS, "source_model", "target"])


def source_order(composed: Composed, name: str) -> tuple[bool, str]:
    """Single models before ensembles, each by name."""
    return name in composed.ensembles, name


def mark(composed: Composed, source: str, target: str) -> str:
    """The footnote of a source and target that is not transfer, else ''."""
    if source == target:
        return WHITE_BOX
    return INSIDE if target in composed.ensembles.get(source, ()) else ""


def transfer(metrics: pd.DataFrame, cells: pd.DataFrame, composed: Composed = SIMPLE) -> Table:
    """A row per image set, attack, threat, judging defense and source (ensembles last), a column per judged model."""
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    rows = transfer_rows(metrics)
    targets = sorted(set(rows["target"]))
    lines = []
    keys = rows[[*KEYS, "source_model"]].drop_duplicates().to_dict("records")
    keys.sort(
        key=lambda k: (
            k["dataset"], k["split"], k["attack"], threat_order(k["threat"]), k["defense"] != "none", k["defense"],
            source_order(composed, k["source_model"]),
        )
    )  # fmt: skip
    for key in keys:
        mine = only(rows, **key)
        members = composed.ensembles.get(key["source_model"], ())
        line: dict[str, Any] = {
            "images": words.image_set(key["dataset"], key["split"]),
            "attack": key["attack"],
            "attack_words": words.attack(key["attack"]),
            "threat": key["threat"],
            "budget": words.threat(key["threat"]),
            "defense": key["defense"],
            "source": key["source_model"],
            "source_words": key["source_model"] + (f" ({' + '.join(members)})" if members else ""),
        }
        for target in targets:
            row = first(mine, target=target)
            note = mark(composed, key["source_model"], target)
            put(line, f"target_{target}", row, notes=[*([note] if note else []), *outcomes.flags(row)])
        counts = [n for n in map(count, (row for _, row in mine.iterrows())) if n is not None]
        line["n"] = min(counts, default=None)
        line["n_largest"] = max(counts, default=None)
        lines.append(line)
    defended = any(line["defense"] != "none" for line in lines)
    uneven = any(line["n"] != line["n_largest"] for line in lines)
    return Table(
        name="transfer",
        title="Accuracy on images made on another model (%)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("attack_words", "attack"),
            Column("budget", "threat"),
            *([Column("defense", "judged behind")] if defended else []),
            Column("source_words", "made on"),
            *(Column(f"target_{t}", f"judged by {t}", "percent") for t in targets),
            Column("n", "smallest n" if uneven else "n", "count"),
            *([Column("n_largest", "largest n", "count")] if uneven else []),
        ),
        footnotes=footnotes(notes_in(lines), MARKS),
        caption=(
            "Share of all samples that the model in the column gets right on the images made on the model or ensemble "
            "in the row, with 95 % intervals over sources. Every image was driven to its end on its source (the "
            "iterate with the largest loss there); images that leave at their first success hardly transfer. A "
            "transferred attack is a candidate in the worst case of the judged model."
        ),
        empty="Not in this run: no model was judged on images made on another.",
    )
