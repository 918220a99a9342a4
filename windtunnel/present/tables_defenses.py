"""Tables of defenses: what each costs, gains and keeps, and the time it takes. Frames in, a ``Table`` of fractions
out."""

from __future__ import annotations

from typing import Any

import pandas as pd

from windtunnel.checks.base import CONTROL
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
)
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import (
    CLEAN,
    PLACE,
    UNWARPED,
    Outcomes,
    absent,
    attacked_rows,
    by_iterate,
    clean_rows,
    first,
    in_distribution,
    is_transfer,
    only,
    robust_rows,
    tidy,
)
from windtunnel.present.style import defense_order

BESIDE = {"bpp_payload": "payload bits per pixel", "psnr": "PSNR (dB)", "ssim": "SSIM"}
"""Measures of the defended clean images, beside accuracy."""
ABOUT_DEFENSES = ("rounds_raise_accuracy", "through_weaker_than_unaware", "surrogate_gap")
"""Checks that speak of the defense itself: named first where only some can be."""
NAMED = 2
"""So many rules or checks are named in a printed cell; of more, the rest are counted (the CSV has all)."""


def defenses(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Defenses of each model under each threat: clean, an attack that ignores the defense, the best attack through it,
    the backward rule that won and of how many, the checks raised, and what the defended clean image costs and keeps.

    Rows by model, threat, then family in the order of ``style.DEFENSES``. Differences are against ``none`` on the same
    images, paired; McNemar's p after Holm is in the CSV. Columns of which the run knows nothing are left out of print.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    unaware, through, every = (robust_rows(metrics, against) for against in ("unaware", "through", "all"))
    bare = only(robust_rows(metrics, "bare"), defense=("none", ""))
    clean = clean_rows(metrics)
    attacked = attacked_rows(metrics)
    judged = _judged(cells)
    measured = {metric: clean_rows(metrics, metric) for metric in BESIDE}
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
                line |= {"rule": "", "n_rules": None, "rule_of": ""}
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
                line |= _rules(outcomes, row, only(attacked, **place, threat=budget, defense=name, attack_defense=name))
                row = first(every, **place, threat=budget, defense=name)
                put(line, "worst_case", row, notes=bounded(outcomes, row), why="not attacked here")
            line |= _raised(only(judged, **place, threat=budget, defense=name), outcomes)
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
    columns = (
        Column("images", "images"),
        Column("model", "model"),
        Column("budget", "threat"),
        Column("defense", "defense"),
        Column("clean", "clean", "percent"),
        Column("unaware", "unaware attack", "percent"),
        Column("through", "best attack through", "percent"),
        Column("rule_of", "rule that won (of)"),
        Column("worst_case", "worst case of all", "percent"),
        Column("flags_of", "checks raised"),
        Column("clean_difference", "clean, minus none", "difference"),
        Column("unaware_difference", "unaware, minus none", "difference"),
        *(Column(key, header, "decimal" if key == "ssim" else "number") for key, header in BESIDE.items()),
        Column("n_clean", "n clean", "count"),
        Column("n_attacked", "n attacked", "count"),
    )
    return Table(
        name="defenses",
        title="Purification defenses: clean, under an attack that ignores them, and attacked through (%)",
        data=frame(lines),
        columns=tuple(c for c in columns if not lines or any(_says(line, c.key) for line in lines)),
        footnotes=footnotes(notes_in(lines)),
        caption=(
            "The honest number of a defense is the worst case of all: the share of samples that is correct clean, "
            "under the unaware attack and under every attack that differentiates the defense, judged on the real "
            "defense. A defense that was not attacked through has no such number. For 'none' the unaware column is the "
            "attack on the bare model. Beside the backward rule that won stands of how many tried (random signs are a "
            "control and not counted). Checks raised are those of every attacked cell of the row; a dagger at a number "
            "marks the checks that touch that number. Differences are paired on the same images (exact McNemar after "
            "Holm over the table: p in the CSV). 95 % intervals over sources. PSNR and SSIM are of the defended clean "
            "image; payload bits leave out what the container costs for a constant image."
        ),
        empty="Not in this run: no defense was judged on an in-distribution set.",
    )


def _says(line: dict[str, Any], key: str) -> bool:
    """Whether a line has something to print in a column: a value, or the reason why there is none."""
    return not all(absent(line.get(k)) or line.get(k) == "" for k in (key, f"{key}_why"))


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


def _rules(outcomes: Outcomes, row: pd.Series | None, tried: pd.DataFrame) -> dict[str, Any]:
    """The backward rules whose own cell reaches the lowest accuracy (several where they tie), and of how many; the
    control is none of them."""
    if row is None:
        return {"rule": "", "n_rules": None, "rule_of": ""}
    won = outcomes.rules(row)
    known = set(tried["through"]) - {"", "none", CONTROL}
    if not won:
        return {"rule": row["note"], "n_rules": len(known) or None, "rule_of": row["note"]}
    return {"rule": ", ".join(won), "n_rules": len(known), "rule_of": f"{_listed(won)} (of {len(known)})"}


def _judged(cells: pd.DataFrame) -> pd.DataFrame:
    """Attacked in-distribution cells that are no transfer: unaware of the defense, or through the one that judges."""
    rows = only(in_distribution(cells), defense=tuple(sorted(set(cells["defense"]))))
    rows = rows[(rows["attack"] != CLEAN) & (rows["attack"] != "")]
    rows = rows[rows["attack_defense"].isin(["none", ""]) | (rows["attack_defense"] == rows["defense"])]
    return rows[~is_transfer(rows)]


def _raised(mine: pd.DataFrame, outcomes: Outcomes) -> dict[str, Any]:
    """The checks raised on any cell of a row: their names, on how many of its cells, and both in words."""
    if mine.empty:
        return {"flags": "", "n_cells": None, "n_cells_raised": None, "flags_of": ""}
    raised = [names for names in map(outcomes.raised, mine["cell_id"]) if names]
    names = words.in_order({name for found in raised for name in found})
    telling = sorted(names, key=lambda n: ABOUT_DEFENSES.index(n) if n in ABOUT_DEFENSES else len(ABOUT_DEFENSES))
    text = f"{_listed([words.title(n) for n in telling])} ({len(raised)} of {len(mine)} cells)" if names else "none"
    return {"flags": " ".join(names), "n_cells": len(mine), "n_cells_raised": len(raised), "flags_of": text}


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


# ----------------------------------------------------------------------------------------------------------------- time


def defense_costs(cells: pd.DataFrame, costs: pd.DataFrame | None = None) -> Table:
    """Time per image of every purifier that ran once per image set, over all sets of a data set.

    ``costs`` has a row per part ``<images>:<shift>:<defense>`` of the rule ``purify_shared``; how many images a part
    holds is the largest number that a clean cell judged of it. Times differ between runs: they stand here and nowhere
    beside a number that is compared.
    """
    cells = tidy(cells)
    known = cells[(cells["attack"] == CLEAN) & ~cells["defense"].isin(["", "none"])]
    images: dict[tuple[str, str], int] = {}
    for row in known.to_dict("records"):
        shift = row["shift"] if row["shift"] in UNWARPED else f"{row['shift']}-{int(row['severity'])}"
        key = (f"{row['dataset']}.{row['split']}:{shift or 'none'}:{row['defense']}", row["defense"])
        images[key] = max(images.get(key, 0), int(row["n"]))
    parts = pd.DataFrame(columns=["rule", "part", "cpu_seconds", "wall_seconds"]) if costs is None else costs
    parts = parts[(parts["rule"] == "purify_shared") & parts["part"].notna() & parts["cpu_seconds"].notna()]
    spent = {part["part"]: part for part in parts.to_dict("records")}
    sums: dict[tuple[str, str], list[float]] = {}
    for (part, name), n in sorted(images.items()):
        if part in spent and n:
            total = sums.setdefault((part.partition(".")[0], name), [0, 0, 0.0, 0.0])
            found = (1, n, float(spent[part]["cpu_seconds"]), float(spent[part]["wall_seconds"]))
            total[:] = [a + b for a, b in zip(total, found, strict=True)]
    lines = [
        {
            "dataset": dataset, "defense": name, "sets": sets, "n": n, "cpu_ms": 1000 * cpu / n,
            "wall_ms": 1000 * wall / n,
        }
        for (dataset, name), (sets, n, cpu, wall) in sorted(
            sums.items(), key=lambda item: (item[0][0], defense_order(item[0][1]))
        )
    ]  # fmt: skip
    return Table(
        name="defense_costs",
        title="Purification defenses: time per image (milliseconds)",
        data=pd.DataFrame(lines, columns=["dataset", "defense", "sets", "n", "cpu_ms", "wall_ms"]),
        columns=(
            Column("dataset", "data set"),
            Column("defense", "defense"),
            Column("cpu_ms", "CPU ms per image", "measure"),
            Column("wall_ms", "wall ms per image", "measure"),
            Column("n", "images", "count"),
            Column("sets", "image sets", "count"),
        ),
        caption=(
            "Measured in this run, on this machine, while other jobs ran: reading the images, purifying them, "
            "measuring PSNR and SSIM and writing the result, so an upper bound of the purifier alone; for the cheapest "
            "ones it is mostly the rest. A defense that draws at random purifies while it is judged and is not "
            "listed. All other costs stand in costs.parquet."
        ),
        empty="Not in this run: no image set was purified on its own, or its cost is not recorded.",
    )
