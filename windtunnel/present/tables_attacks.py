"""The table of attacks on undefended models: frames of ``metrics`` and ``cells`` in, a ``Table`` of fractions out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import (
    count,
    footnotes,
    frame,
    match,
    notes_in,
    ordered,
    place_words,
    put,
    put_seeds,
)
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import (
    CLEAN,
    PLACE,
    SIMPLE,
    Composed,
    Outcomes,
    absent,
    attacked_rows,
    by_attack_rows,
    cell_rows,
    clean_rows,
    first,
    in_distribution,
    only,
    seed_means,
    tidy,
    worst_rows,
)

SINGLES = 8
"""Columns of single attacks that the printed forms of a table hold; with more, only those that some line needs."""


def robust_accuracy(metrics: pd.DataFrame, cells: pd.DataFrame, composed: Composed = SIMPLE) -> Table:
    """Undefended models: a row per image set, model, seed and threat; the worst case of all, a column per attack.

    An attack's column is ``robust_accuracy_by_attack``; the worst case is ``robust_accuracy`` against ``all``:
    clean-correct and correct on every candidate image, per sample, transferred images and noise included. Batteries
    stand before single attacks. Of more than eight single attacks the printed forms show those that are the lowest
    single attack of some line; the CSV has all. The worst class is that of the cell with the lowest accuracy.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    bare = only(attacked_rows(metrics), attack_defense=("none", ""), defense="none")
    alone = only(by_attack_rows(metrics, "bare"), defense=("none", ""))
    worst = worst_rows(metrics)
    clean = only(clean_rows(metrics), defense="none")
    classes = cell_rows(metrics, "worst_class_accuracy")
    means = only(in_distribution(seed_means(metrics, "accuracy")), attack=CLEAN, defense=("none", ""))
    attacks = sorted(bare["attack"].unique(), key=lambda a: (a not in composed.batteries, a))
    keys = pd.concat([bare[[*PLACE, "threat"]], worst[[*PLACE, "threat"]]]).drop_duplicates()
    lines = []
    for key in ordered(keys, "threat"):
        place = {name: key[name] for name in PLACE}
        line: dict[str, Any] = {**place_words(place), "threat": key["threat"], "budget": words.threat(key["threat"])}
        own = first(clean, **match(place))
        put(line, "clean", own, notes=outcomes.flags(own))
        worst_row = first(worst, **match(place), threat=key["threat"])
        put(line, "worst_case", worst_row, notes=outcomes.flags(worst_row))
        for attack in attacks:
            row = first(alone, **match(place), threat=key["threat"], attack=attack)
            if row is None:
                row = first(bare, **match(place), threat=key["threat"], attack=attack)
            put(line, f"attack_{attack}", row, notes=outcomes.flags(row))
        lowest = _lowest_attacks(line, attacks)
        line["lowest"] = ", ".join(words.attack(a) for a in lowest[:3])
        line["lowest"] += f" and {len(lowest) - 3} more" if len(lowest) > 3 else ""
        of_class = _worst_class(classes, outcomes, worst_row)
        put(line, "worst_class", of_class)
        line["worst_class_label"] = "" if of_class is None else str(of_class["note"]).partition("class ")[2]
        seen = [worst_row, *(first(bare, **match(place), threat=key["threat"], attack=a) for a in attacks)]
        line["n"] = next((n for n in map(count, seen) if n is not None), None)
        line["n_clean"] = count(own)
        mean = first(means, dataset=place["dataset"], split=place["split"], model=place["model"])
        put_seeds(line, "clean_over_seeds", mean)
        line["seeds"] = 1 if mean is None else int(mean["seeds"])
        lines.append(line)
    singles = [a for a in attacks if a not in composed.batteries]
    needed = {a for x in lines for a in _lowest_attacks(x, singles)}
    left_out = set() if len(singles) <= SINGLES else set(singles) - needed
    return Table(
        name="robust_accuracy",
        title="Accuracy of undefended models under attack (%)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("budget", "threat"),
            Column("clean", "clean", "percent"),
            Column("worst_case", "worst case", "percent"),
            *(Column(f"attack_{a}", words.attack(a), "percent") for a in attacks if a not in left_out),
            Column("lowest", "lowest attack"),
            Column("worst_class", "worst class", "percent"),
            Column("worst_class_label", "class"),
            Column("n", "n attacked", "count"),
            Column("n_clean", "n clean", "count"),
            Column("clean_over_seeds", "clean, mean of training seeds ± sd", "percent"),
            Column("seeds", "seeds", "count"),
        ),
        footnotes=footnotes(notes_in(lines)),
        caption=(
            "Share of all samples that is correct clean and stays so under the attack, with 95 % intervals over "
            "sources. The worst case counts a sample only if it is correct on every candidate image of the row, "
            "transferred ones and noise included. The worst class is the class with the lowest accuracy under the "
            "attack that came lowest alone; its interval is that of a minimum over classes. Attacks ran on the model "
            "of training seed 0 unless its name says otherwise; the mean over seeds shows how far clean accuracy moves "
            "when the model is trained again, with the interval over seeds."
            + (f" {len(left_out)} single attacks that were nowhere the lowest are in the CSV only." if left_out else "")
        ),
        empty="Not in this run: no attack on an undefended model.",
    )


def _lowest_attacks(line: dict[str, Any], attacks: Iterable[str]) -> list[str]:
    """Of some attacks those with the lowest value in a line (several where they tie)."""
    values = {a: line[f"attack_{a}"] for a in attacks if not absent(line[f"attack_{a}"])}
    return [a for a, value in values.items() if value == min(values.values())]


def _worst_class(classes: pd.DataFrame, outcomes: Outcomes, row: pd.Series | None) -> pd.Series | None:
    """The worst class of the cell that reaches a worst case's lowest accuracy (of several the lowest)."""
    winners = [] if row is None else outcomes.winners(row)
    found = classes[classes["cell_id"].isin(winners)].sort_values(["value", "cell_id"], kind="stable")
    return None if found.empty else found.iloc[0]
