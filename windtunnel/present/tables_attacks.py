"""Tables of attacks and defenses: frames of ``metrics`` and ``cells`` in, a ``Table`` of fractions out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import (
    bounded,
    count,
    footnotes,
    frame,
    match,
    notes_in,
    ordered,
    p_adjusted,
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
    by_iterate,
    cell_rows,
    clean_rows,
    first,
    in_distribution,
    only,
    robust_rows,
    seed_means,
    tidy,
    worst_rows,
)
from windtunnel.present.style import defense_order

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


def defenses(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Defenses of each model under each threat: clean, an attack that ignores the defense, the best attack through it.

    Differences are against ``none`` on the same images, paired, with McNemar's p after Holm.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    unaware, through, every = (robust_rows(metrics, against) for against in ("unaware", "through", "all"))
    bare = only(robust_rows(metrics, "bare"), defense=("none", ""))
    clean = clean_rows(metrics)
    measured = {metric: clean_rows(metrics, metric) for metric in ("bpp_payload", "psnr")}
    paired = in_distribution(metrics)
    paired = paired[(paired["metric"] == "accuracy_difference") & (paired["baseline_cell_id"] != "")]
    guarded = pd.concat([unaware, through])
    guarded = guarded[~guarded["defense"].isin(["", "none"])]
    keys = guarded[[*PLACE, "threat"]].drop_duplicates()
    tried = guarded[[*PLACE, "defense"]].drop_duplicates()
    behind = clean[clean["defense"] != "none"]
    keys_clean = behind[PLACE].drop_duplicates()
    lines = []
    for key in ordered(_with_clean_only(keys, keys_clean), "threat"):
        place = match({name: key[name] for name in PLACE})
        budget = key["threat"]
        names = {*only(behind, **place)["defense"], *only(tried, **place)["defense"]} - {"none"}
        for name in ["none", *sorted(names, key=defense_order)]:
            line: dict[str, Any] = {
                **place_words(key),
                "threat": budget,
                "budget": words.threat(budget) if budget else "no attack",
                "defense": name,
            }
            own = first(clean, **place, defense=name)
            put(line, "clean", own, notes=outcomes.flags(own))
            difference = first(only(paired, attack=CLEAN), **place, defense=name)
            put(line, "clean_difference", difference)
            line["clean_p_holm"] = p_adjusted(difference)
            if name == "none":
                row = first(bare, **place, threat=budget)
                put(line, "unaware", row, notes=outcomes.flags(row))
                put(line, "unaware_difference", None)
                line["unaware_p_holm"] = None
                put(line, "through", None)
                line["rule"] = ""
                row = first(every, **place, threat=budget, defense=name)
                put(line, "worst_case", row, notes=outcomes.flags(row))
            else:
                row = first(unaware, **place, threat=budget, defense=name)
                put(line, "unaware", row, notes=outcomes.flags(row))
                gain = _attacked_difference(paired, place, budget, name)
                put(line, "unaware_difference", gain)
                line["unaware_p_holm"] = p_adjusted(gain)
                row = first(through, **place, threat=budget, defense=name)
                put(line, "through", row, notes=bounded(outcomes, row), why="not attacked here")
                line["rule"] = _rule_that_won(outcomes, row)
                row = first(every, **place, threat=budget, defense=name)
                put(line, "worst_case", row, notes=bounded(outcomes, row), why="not attacked here")
            for metric in measured:
                found = first(measured[metric], **place, defense=name)
                line[metric] = None if found is None else float(found["value"])
            if (
                budget
                and name != "none"
                and all(first(rows, **place, threat=budget, defense=name) is None for rows in (unaware, through))
            ):
                continue
            line["n_clean"] = count(own)
            line["n_attacked"] = next(
                (n for n in (count(first(f, **place, threat=budget, defense=d)) for f, d in (
                    (through, name), (unaware, name), (bare, ("none", "")))) if n is not None), None
            )  # fmt: skip
            lines.append(line)
    return Table(
        name="defenses",
        title="Purification defenses: clean, under an attack that ignores them, and attacked through (%)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("budget", "threat"),
            Column("defense", "defense"),
            Column("clean", "clean", "percent"),
            Column("clean_difference", "clean, minus none", "difference"),
            Column("clean_p_holm", "p (Holm)", "p"),
            Column("unaware", "unaware attack", "percent"),
            Column("unaware_difference", "unaware, minus none", "difference"),
            Column("unaware_p_holm", "p (Holm)", "p"),
            Column("through", "best attack through", "percent"),
            Column("rule", "rule that won"),
            Column("worst_case", "worst case of all", "percent"),
            Column("bpp_payload", "payload bits per pixel", "number"),
            Column("psnr", "PSNR (dB)", "number"),
            Column("n_clean", "n clean", "count"),
            Column("n_attacked", "n attacked", "count"),
        ),
        footnotes=footnotes(notes_in(lines)),
        caption=(
            "The honest number of a defense is the last accuracy, the worst case of all: the share of samples that is "
            "correct clean, under the unaware attack and under every attack that differentiates the defense, judged "
            "on the real defense. A defense that was not attacked through has no such number. For 'none' the unaware "
            "column is the attack on the bare model. Differences are paired on the same images: "
            "exact McNemar, Holm over the table. 95 % intervals over sources. PSNR is of the defended clean image; "
            "payload bits leave out what the container costs for a constant image."
        ),
        empty="Not in this run: no defense was judged on an in-distribution set.",
    )


def _with_clean_only(keys: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """Attacked (place, threat) keys, and of models that were never attacked behind a defense the lowest seed, threat
    ''."""
    family = ["dataset", "split", "model"]
    have = set(map(tuple, keys[family].to_numpy().tolist()))
    lowest = clean.sort_values([*family, "model_seed"], kind="stable").drop_duplicates(family)
    more = [row for row in lowest.to_dict("records") if tuple(row[f] for f in family) not in have]
    return pd.concat([keys, pd.DataFrame([{**row, "threat": ""} for row in more], columns=[*PLACE, "threat"])])


def _attacked_difference(paired: pd.DataFrame, place: dict[str, Any], threat: str, defense: str) -> pd.Series | None:
    rows = only(paired, **place, threat=threat, defense=defense)
    rows = rows[
        (rows["attack"] != CLEAN) & (rows["through"].isin(["bare", ""])) & rows["attack_defense"].isin(["none", ""])
    ]
    return None if rows.empty else by_iterate(rows).iloc[0]


def _rule_that_won(outcomes: Outcomes, row: pd.Series | None) -> str:
    """The backward rules whose own cell reaches the lowest accuracy (several where they tie)."""
    if row is None:
        return ""
    return ", ".join(outcomes.rules(row)) or row["note"]
