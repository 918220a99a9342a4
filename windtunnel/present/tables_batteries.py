"""Batteries: which member broke how many samples, at what cost, beside every single attack on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import bounded, count, footnotes, frame, match, notes_in, place_words, put
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import (
    CLEAN,
    PLACE,
    SIMPLE,
    UNWARPED,
    Composed,
    Outcomes,
    first,
    full_name,
    in_distribution,
    only,
    threat_order,
    tidy,
)

PIPELINE = [*PLACE, "threat", "defense", "through"]
SAMPLE_COLUMNS = (
    "cell_id", "dataset", "split", "role", "shift", "model", "model_seed", "source_model", "attack", "threat", "norm",
    "eps", "attack_seed", "attack_defense", "through", "defense", "mode", "iterate", "sample_id", "source_id",
    "correct", "linf", "l2", "broken_by", "n_forward", "n_backward", "status",
)  # fmt: skip
"""Columns of the samples that this table and the figures of attacks read."""


def own_attacks(samples: pd.DataFrame) -> pd.DataFrame:
    """Samples of in-distribution cells whose judged pipeline is the one that was attacked (its last iterates left
    out); a sample without a source is its own."""
    names = [c for c in SAMPLE_COLUMNS if c in samples.columns]
    rows = tidy(samples[names])
    rows = only(rows, role=("id", ""), shift=UNWARPED)
    rows = rows[~rows["attack"].isin([CLEAN, ""]) & (rows["iterate"] != "last")]
    rows = rows[rows["attack_defense"].replace("", CLEAN) == rows["defense"].replace("", CLEAN)]
    models = rows[["model", "model_seed"]].drop_duplicates()
    own = {(m, s): full_name(m, s) for m, s in models.to_numpy().tolist()}
    names_of = [own[(m, s)] for m, s in zip(rows["model"], rows["model_seed"], strict=True)]
    rows = rows[rows["source_model"].to_numpy() == np.array(names_of, dtype=object)]
    return rows.assign(
        broken_by=rows["broken_by"].astype(object).where(rows["broken_by"].notna(), ""),
        source_id=rows["source_id"].where(rows["source_id"].notna(), rows["sample_id"]),
    )


def batteries(metrics: pd.DataFrame, cells: pd.DataFrame, samples: pd.DataFrame, composed: Composed = SIMPLE) -> Table:
    """A block per pipeline and threat that a battery attacked: the batteries, then every single attack on samples that
    a battery saw too; for each battery of the run, what it missed of this attack's and this attack of its.

    Robust accuracy is ``robust_accuracy_by_attack`` of the metrics, over each attack's own samples. Everything else is
    counted here from the samples of one cell of the attack: mode ``search`` before ``full`` (there a sample stops
    costing when it is broken), lowest attack seed. ``broken`` means on the attacked pipeline, in floating point.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    rows = own_attacks(samples)
    outcomes = Outcomes(metrics, cells)
    alone = only(in_distribution(metrics), metric="robust_accuracy_by_attack")
    alone = alone[(alone["group_id"] != "") & alone["value"].notna()]
    groups = [(key, part) for key, part in rows.groupby(PIPELINE, dropna=False, sort=True)]
    groups = [(key, part) for key, part in groups if set(part["attack"]) & set(composed.batteries)]
    groups.sort(key=lambda g: (*map(str, g[0][:4]), threat_order(g[0][4]), *map(str, g[0][5:])))
    batteries = sorted({a for _, part in groups for a in part["attack"]} & set(composed.batteries))
    lines: list[dict[str, Any]] = []
    for key, part in groups:
        place = dict(zip(PIPELINE, key, strict=True))
        chosen = {attack: _one_cell(of) for attack, of in part.groupby("attack", sort=True)}
        seen = {s for b in batteries if b in chosen for s in chosen[b]["sample_id"]}
        beside = [a for a in sorted(chosen) if a not in batteries and seen & set(chosen[a]["sample_id"])]
        for attack in (*(b for b in batteries if b in chosen), *beside):
            line = {**place_words(place), "threat": place["threat"], "budget": words.threat(place["threat"])}
            line |= _pipeline(place) | {"attack": attack, "attack_words": words.attack(attack)}
            row = _robust(alone, place, attack)
            put(line, "robust_accuracy", row, notes=bounded(outcomes, row))
            line["n"] = count(row)
            line |= _spent(chosen[attack], composed.batteries.get(attack, ()))
            for battery in batteries:
                line |= _against(battery, chosen.get(battery) if battery != attack else None, chosen[attack])
            lines.append(line)
    defended = any(line["defense"] != CLEAN for line in lines)
    return Table(
        name="batteries",
        title="Batteries beside single attacks (robust accuracy in %)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            *([Column("defense", "through"), Column("rule_words", "rule")] if defended else []),
            Column("budget", "threat"),
            Column("attack_words", "attack"),
            Column("robust_accuracy", "robust accuracy", "percent"),
            Column("n", "n", "count"),
            Column("broken", "broken", "count"),
            Column("broken_by", "broken by"),
            Column("gradients", "gradient evaluations per sample", "measure"),
            Column("forwards", "forward passes per sample", "measure"),
            Column("mode", "mode"),
            *(
                Column(f"{side}_{b}_words", header.format(words.attack(b)))
                for b in batteries
                for side, header in (
                    ("missed_by", "broken here, missed by {}"),
                    ("found_by", "broken by {}, missed here"),
                )
            ),
        ),
        footnotes=footnotes(notes_in(lines)),
        caption=(
            "A battery runs its members in order, each on what the ones before left standing; 'broken by' counts the "
            "samples in that order. Robust accuracy is over each attack's own n samples, judged as stored; the last "
            "columns compare it with each battery on the samples that both saw. Passes are means over all samples of "
            "the row (through one model and one draw each), members together. In mode search a sample stops costing "
            "when it is broken; in mode full it pays for every step. 95 % intervals over sources."
        ),
        empty="Not in this run: no battery of attacks.",
    )


def _one_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one cell of an attack: mode search first, then the lowest attack seed."""
    rank = rows.assign(_mode=rows["mode"] != "search").sort_values(["_mode", "attack_seed", "cell_id"], kind="stable")
    return rank[rank["cell_id"] == rank["cell_id"].iloc[0]]


def _pipeline(place: Mapping[str, Any]) -> dict[str, str]:
    defense = place["defense"] or CLEAN
    return {"defense": defense, "rule_words": "" if defense == CLEAN else words.rule(place["through"])}


def _robust(alone: pd.DataFrame, place: Mapping[str, Any], attack: str) -> pd.Series | None:
    """The attack's robust accuracy on the pipeline: undefended over everything, through a defense by this one rule."""
    bare = place["defense"] in ("", CLEAN)
    kind = {"against": "bare", "through": ""} if bare else {"against": "through", "through": place["through"]}
    defense = ("none", "") if bare else place["defense"]
    return first(alone, **match(dict(place)), threat=place["threat"], attack=attack, defense=defense, **kind)


def _spent(rows: pd.DataFrame, members: Sequence[str]) -> dict[str, Any]:
    broken = rows["broken_by"][rows["broken_by"] != ""]
    counts = broken.value_counts()
    names = [*members, *sorted(set(counts.index) - set(members))]
    return {
        "broken": len(broken),
        "broken_by": ", ".join(f"{words.attack(m)} {int(counts.get(m, 0))}" for m in names) if members else "",
        "gradients": _mean(rows["n_backward"]),
        "forwards": _mean(rows["n_forward"]),
        "mode": rows["mode"].iloc[0],
    }


def _mean(values: pd.Series) -> float | None:
    known = values.dropna().to_numpy(float)
    return float(known.mean()) if len(known) == len(values) and len(known) else None


def _against(name: str, battery: pd.DataFrame | None, attack: pd.DataFrame) -> dict[str, Any]:
    """Samples that one of the two broke and the other saw and did not, as counts and as printed ("3 of 200")."""
    line: dict[str, Any] = dict.fromkeys((f"missed_by_{name}", f"found_by_{name}", f"shared_{name}"))
    line |= {f"missed_by_{name}_words": "", f"found_by_{name}_words": ""}
    if battery is None:
        return line
    theirs, mine = (dict(zip(f["sample_id"], f["broken_by"] != "", strict=True)) for f in (battery, attack))
    both = sorted(set(theirs) & set(mine))
    missed = sum(mine[s] and not theirs[s] for s in both)
    found = sum(theirs[s] and not mine[s] for s in both)
    return line | {
        f"missed_by_{name}": missed,
        f"found_by_{name}": found,
        f"shared_{name}": len(both),
        f"missed_by_{name}_words": f"{missed} of {len(both)}",
        f"found_by_{name}_words": f"{found} of {len(both)}",
    }
