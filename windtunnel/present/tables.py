"""The tables of a run: frames of ``metrics`` and ``cells`` in, a ``Table`` of fractions out. Pure; ``render`` prints
them.

A table of which this run has no rows comes out empty and is printed as 'Not in this run'. No number is computed here
beyond choosing rows: what a table shows stands in ``metrics`` with the same value.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.layout import Column, Table
from windtunnel.present.render import page
from windtunnel.present.select import (
    CLEAN,
    PLACE,
    UNWARPED,
    absent,
    attacked_rows,
    by_attack_rows,
    by_iterate,
    clean_rows,
    first,
    full_name,
    in_distribution,
    only,
    raised,
    raised_on_all,
    robust_rows,
    seed_means,
    threat_order,
    tidy,
    winners,
    worst_rows,
)
from windtunnel.present.style import defense_family, defense_rounds, defense_strength

HEADLINE_SCORES = ("abet", "energy", "msp")
CONVENTIONS = {
    "fpr95_id_positive": "FPR95, ID positive (share of OOD accepted where 95 % of ID are accepted)",
    "fpr95_ood_positive": "FPR95, OOD positive (share of ID flagged where 95 % of OOD are flagged)",
}
OOD_METRICS = {"auroc": "AUROC", **CONVENTIONS}


def _put(line: dict[str, Any], key: str, row: pd.Series | None, *, notes: Iterable[str] = (), why: str = "") -> None:
    """An estimate with interval, footnotes and, where it is absent, the reason."""
    line[key] = None if row is None else float(row["value"])
    line[f"{key}_low"] = None if row is None or absent(row["ci_low"]) else float(row["ci_low"])
    line[f"{key}_high"] = None if row is None or absent(row["ci_high"]) else float(row["ci_high"])
    line[f"{key}_notes"] = " ".join(notes) if row is not None else ""
    if why:
        line[f"{key}_why"] = why if row is None else ""


def _put_seeds(line: dict[str, Any], key: str, row: pd.Series | None) -> None:
    """A mean over training seeds: value, interval over seeds, standard deviation."""
    _put(line, key, row)
    line[f"{key}_sd"] = None if row is None or absent(row["seed_sd"]) else float(row["seed_sd"])


def _p_adjusted(row: pd.Series | None) -> float | None:
    return None if row is None or absent(row["p_adjusted"]) else float(row["p_adjusted"])


def _count(row: pd.Series | None, name: str = "n") -> int | None:
    return None if row is None or absent(row[name]) else int(row[name])


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows in the order given; columns that are empty throughout go, except estimates (value, low, high)."""
    frame = pd.DataFrame(lines)
    optional = [c for c in frame.columns if c.endswith(("_notes", "_why", "_sd"))]
    return frame.drop(columns=[c for c in optional if all(absent(v) or v == "" for v in frame[c])])


def _footnotes(names: Iterable[str]) -> dict[str, str]:
    known = list(dict.fromkeys(names))
    order = [n for n in words.check_names() if n in known]
    order += sorted(n for n in known if n not in order)
    notes = {}
    for name in order:
        check = words.check_words(name)
        notes[name] = f"{check.title}: {check.meaning}"
    return notes


def _notes_in(lines: list[dict[str, Any]]) -> list[str]:
    return [n for line in lines for key, text in line.items() if key.endswith("_notes") and text for n in text.split()]


def _flags(metrics: pd.DataFrame, cells: pd.DataFrame, row: pd.Series | None) -> tuple[str, ...]:
    """The checks that touch a number: of one cell its own; of a worst case those raised on every member that reaches
    the lowest accuracy.

    A masking rule raises its flag on its own cell; where another rule found less accuracy the worst case is not
    touched.
    """
    if row is None:
        return ()
    if row["cell_id"]:
        return raised(cells, row["cell_id"])
    return raised_on_all(cells, list(winners(metrics, row)["cell_id"]))


# -------------------------------------------------------------------------------------------------------------- attacks


def robust_accuracy(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Undefended models: one row per image set, model, seed and threat; one column per attack and the worst case of
    all.

    An attack's column is ``robust_accuracy_by_attack``; the worst case is ``robust_accuracy`` against ``all``:
    clean-correct and correct on every candidate image, per sample, transferred images and noise included.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    bare = only(attacked_rows(metrics), attack_defense=("none", ""), defense="none")
    alone = only(by_attack_rows(metrics, "bare"), defense=("none", ""))
    worst = worst_rows(metrics)
    clean = only(clean_rows(metrics), defense="none")
    means = only(in_distribution(seed_means(metrics, "accuracy")), attack=CLEAN, defense=("none", ""))
    attacks = sorted(bare["attack"].unique())
    keys = pd.concat([bare[[*PLACE, "threat"]], worst[[*PLACE, "threat"]]]).drop_duplicates()
    lines = []
    for key in _ordered(keys, "threat"):
        place = {name: key[name] for name in PLACE}
        line: dict[str, Any] = {**_place(place), "threat": key["threat"], "budget": words.threat(key["threat"])}
        own = first(clean, **_match(place))
        _put(line, "clean", own, notes=() if own is None else raised(cells, own["cell_id"]))
        worst_row = first(worst, **_match(place), threat=key["threat"])
        for attack in attacks:
            row = first(alone, **_match(place), threat=key["threat"], attack=attack)
            if row is None:
                row = first(bare, **_match(place), threat=key["threat"], attack=attack)
            _put(line, f"attack_{attack}", row, notes=_flags(metrics, cells, row))
        _put(line, "worst_case", worst_row, notes=_flags(metrics, cells, worst_row))
        seen = [worst_row, *(first(bare, **_match(place), threat=key["threat"], attack=a) for a in attacks)]
        line["n"] = next((n for n in map(_count, seen) if n is not None), None)
        line["n_clean"] = _count(own)
        mean = first(means, dataset=place["dataset"], split=place["split"], model=place["model"])
        _put_seeds(line, "clean_over_seeds", mean)
        line["seeds"] = 1 if mean is None else int(mean["seeds"])
        lines.append(line)
    return Table(
        name="robust_accuracy",
        title="Accuracy of undefended models under attack (%)",
        data=_frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("budget", "threat"),
            Column("clean", "clean", "percent"),
            *(Column(f"attack_{a}", words.attack(a), "percent") for a in attacks),
            Column("worst_case", "worst case", "percent"),
            Column("n", "n attacked", "count"),
            Column("n_clean", "n clean", "count"),
            Column("clean_over_seeds", "clean, mean of training seeds ± sd", "percent"),
            Column("seeds", "seeds", "count"),
        ),
        footnotes=_footnotes(_notes_in(lines)),
        caption=(
            "Share of all samples that is correct clean and stays so under the attack, with 95 % intervals over sources. The worst case "
            "counts a sample only if it is correct clean and under every attack of the row. Attacks ran on the model "
            "of training seed 0 unless its name says otherwise; the mean over seeds shows how far clean accuracy "
            "moves when the model is trained again, with the interval over seeds."
        ),
        empty="Not in this run: no attack on an undefended model.",
    )


def defenses(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Defenses of each model under each threat: clean, an attack that ignores the defense, the best attack through it.

    Differences are against ``none`` on the same images, paired, with McNemar's p after Holm.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    unaware, through, every = (robust_rows(metrics, against) for against in ("unaware", "through", "all"))
    bare = only(robust_rows(metrics, "bare"), defense=("none", ""))
    clean = clean_rows(metrics)
    paired = in_distribution(metrics)
    paired = paired[(paired["metric"] == "accuracy_difference") & (paired["baseline_cell_id"] != "")]
    guarded = pd.concat([unaware, through])
    guarded = guarded[~guarded["defense"].isin(["", "none"])]
    keys = guarded[[*PLACE, "threat"]].drop_duplicates()
    tried = guarded[[*PLACE, "defense"]].drop_duplicates()
    behind = clean[clean["defense"] != "none"]
    keys_clean = behind[PLACE].drop_duplicates()
    lines = []
    for key in _ordered(_with_clean_only(keys, keys_clean), "threat"):
        place = _match({name: key[name] for name in PLACE})
        budget = key["threat"]
        names = {*only(behind, **place)["defense"], *only(tried, **place)["defense"]} - {"none"}
        for name in ["none", *sorted(names, key=defense_order)]:
            line: dict[str, Any] = {
                **_place(key),
                "threat": budget,
                "budget": words.threat(budget) if budget else "no attack",
                "defense": name,
            }
            own = first(clean, **place, defense=name)
            _put(line, "clean", own, notes=() if own is None else raised(cells, own["cell_id"]))
            difference = first(only(paired, attack=CLEAN), **place, defense=name)
            _put(line, "clean_difference", difference)
            line["clean_p_holm"] = _p_adjusted(difference)
            if name == "none":
                row = first(bare, **place, threat=budget)
                _put(line, "unaware", row, notes=_flags(metrics, cells, row))
                _put(line, "unaware_difference", None)
                line["unaware_p_holm"] = None
                _put(line, "through", None)
                line["rule"] = ""
                row = first(every, **place, threat=budget, defense=name)
                _put(line, "worst_case", row, notes=_flags(metrics, cells, row))
            else:
                row = first(unaware, **place, threat=budget, defense=name)
                _put(line, "unaware", row, notes=_flags(metrics, cells, row))
                gain = _attacked_difference(paired, place, budget, name)
                _put(line, "unaware_difference", gain)
                line["unaware_p_holm"] = _p_adjusted(gain)
                row = first(through, **place, threat=budget, defense=name)
                _put(line, "through", row, notes=_bounded(metrics, cells, row), why="not attacked here")
                line["rule"] = _rule_that_won(metrics, row)
                row = first(every, **place, threat=budget, defense=name)
                _put(line, "worst_case", row, notes=_bounded(metrics, cells, row), why="not attacked here")
            for metric in ("bpp_payload", "psnr"):
                found = first(clean_rows(metrics, metric), **place, defense=name)
                line[metric] = None if found is None else float(found["value"])
            line["n_clean"] = _count(own)
            line["n_attacked"] = next(
                (n for n in (_count(first(f, **place, threat=budget, defense=d)) for f, d in (
                    (through, name), (unaware, name), (bare, ("none", "")))) if n is not None), None
            )  # fmt: skip
            lines.append(line)
    return Table(
        name="defenses",
        title="Purification defenses: clean, under an attack that ignores them, and attacked through (%)",
        data=_frame(lines),
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
        footnotes=_footnotes(_notes_in(lines)),
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


def _bounded(metrics: pd.DataFrame, cells: pd.DataFrame, row: pd.Series | None) -> list[str]:
    """Notes of a number found through a defense: the dagger 'upper bound' first, then the checks."""
    bound = [words.UPPER_BOUND] if row is not None and words.is_upper_bound(row["note"]) else []
    return [*bound, *_flags(metrics, cells, row)]


def _with_clean_only(keys: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """Attacked (place, threat) keys, and places whose defenses were only judged on clean images under the threat ''."""
    have = set(map(tuple, keys[PLACE].to_numpy().tolist()))
    more = [row for row in clean.to_dict("records") if tuple(row[p] for p in PLACE) not in have]
    return pd.concat([keys, pd.DataFrame([{**row, "threat": ""} for row in more], columns=[*PLACE, "threat"])])


def _attacked_difference(paired: pd.DataFrame, place: dict[str, Any], threat: str, defense: str) -> pd.Series | None:
    rows = only(paired, **place, threat=threat, defense=defense)
    rows = rows[
        (rows["attack"] != CLEAN) & (rows["through"].isin(["bare", ""])) & rows["attack_defense"].isin(["none", ""])
    ]
    return None if rows.empty else by_iterate(rows).iloc[0]


def _rule_that_won(metrics: pd.DataFrame, row: pd.Series | None) -> str:
    """The backward rules whose own cell reaches the lowest accuracy (several where they tie)."""
    if row is None:
        return ""
    names = sorted(set(winners(metrics, row)["through"]) - {"", "none"})
    return ", ".join(names) or row["note"]


def defense_order(name: str) -> tuple[str, float, int, str]:
    """Sorts defenses by family, strength, rounds."""
    base, rounds = defense_rounds(name)
    return (defense_family(base), defense_strength(base), rounds, name)


def _match(place: dict[str, Any]) -> dict[str, Any]:
    """Keys for ``only``: a null seed is looked up as null."""
    return {k: (None if absent(v) else v) for k, v in place.items() if k in PLACE}


def _place(place: Any) -> dict[str, Any]:
    return {
        "images": words.image_set(place["dataset"], place["split"]),
        "model": full_name(place["model"], place["model_seed"]),
    }


def _ordered(keys: pd.DataFrame, *extra: str) -> list[dict[str, Any]]:
    records = keys.drop_duplicates().to_dict("records")
    return sorted(
        records,
        key=lambda r: (
            r["dataset"], r["split"], r["model"], -1 if absent(r["model_seed"]) else int(r["model_seed"]),
            *(threat_order(r[e]) for e in extra),
        ),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ ood


def ood_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rows of clean, undefended OOD comparisons by score: per set, and near and far means; one seed or over seeds."""
    rows = tidy(metrics)
    rows = rows[(rows["score"] != "") & (rows["model"] != "") & rows["metric"].isin(list(OOD_METRICS))]
    rows = rows[rows["value"].notna()]
    rows = only(rows, attack=(CLEAN, ""), defense=("none", ""), shift=UNWARPED)
    return rows[rows["role"] != "validation"]


def _best_row(rows: pd.DataFrame, **wanted: Any) -> pd.Series | None:
    """The mean over seeds where there is one, else the lowest seed."""
    found = only(rows, **wanted)
    if found.empty:
        return None
    over = found[found["model_seed"].isna() & (found["seeds"].fillna(0) > 1)]
    return over.iloc[0] if len(over) else found.sort_values("model_seed", kind="stable").iloc[0]


def _seeds(row: pd.Series | None) -> int | None:
    if row is None:
        return None
    return 1 if absent(row["seeds"]) else int(row["seeds"])


def ood(metrics: pd.DataFrame, cells: pd.DataFrame, trivial: pd.DataFrame | None = None) -> Table:
    """Scores of each model family: near and far means of AUROC and FPR95 in both conventions, over training seeds.

    ``trivial`` (optional) has the columns ``dataset, group, statistic, metric, value`` and may have ``ci_low,
    ci_high``, where ``group`` is ``near_ood``, ``far_ood`` or a split: what image statistics that need no model reach;
    the best is a row.
    """
    rows = ood_rows(metrics)
    means = rows[(rows["group_id"] != "") & rows["split"].isin(["near_ood", "far_ood"])]
    means = means[means["against"].isin(["mean of sets", ""])]
    keys = ("near_ood", "far_ood")
    lines = []
    for (dataset, model, score), part in sorted(
        means.groupby(["dataset", "model", "score"]), key=lambda kv: _score_key(kv[0])
    ):
        line: dict[str, Any] = {"images": dataset, "model": model, "score": score, "score_words": words.score(score)}
        shown: pd.Series | None = None
        for metric in OOD_METRICS:
            for group in keys:
                row = _best_row(part, metric=metric, split=group)
                _put_seeds(line, f"{group}_{metric}", row)
                shown = row if shown is None else shown
        line["seeds"], line["n_id"], line["n_ood"] = _seeds(shown), _count(shown, "n_id"), _count(shown, "n_ood")
        lines.append(line)
    for dataset in sorted(means["dataset"].unique()):
        lines += _trivial_lines(trivial, dataset, keys, lambda g, m: f"{g}_{m}")
    heads = {"auroc": "AUROC", "fpr95_id_positive": "FPR95 (ID positive)", "fpr95_ood_positive": "FPR95 (OOD positive)"}
    return Table(
        name="ood",
        title="Out-of-distribution scores: near and far means (%)",
        data=_frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("score_words", "score"),
            *(
                Column(f"{group}_{metric}", f"{word} {heads[metric]}", "percent")
                for group, word in (("near_ood", "near"), ("far_ood", "far"))
                for metric in OOD_METRICS
            ),
            Column("seeds", "seeds", "count"),
            Column("n_id", "n ID", "count"),
            Column("n_ood", "n OOD", "count"),
        ),
        caption=(
            "Means over the near or far sets, each set weighing the same. With several training seeds: mean ± standard "
            "deviation over seeds [95 % interval of the mean over seeds, Student's t]; with one seed the interval is "
            f"over images. {CONVENTIONS['fpr95_id_positive']}; {CONVENTIONS['fpr95_ood_positive']}. The best trivial "
            "statistic knows nothing of any model: a score that does not beat it has shown nothing."
        ),
        empty="Not in this run: no image set with a near or far OOD role was scored.",
    )


def ood_sets(metrics: pd.DataFrame, cells: pd.DataFrame, trivial: pd.DataFrame | None = None) -> Table:
    """Score x set for each model family and metric, sanity sets included (they are in no mean)."""
    rows = ood_rows(metrics)
    roles = {name: i for i, name in enumerate(("near_ood", "far_ood", "no_object", "ambiguous", "shifted", "sanity"))}
    sets = rows[
        ~rows["split"].isin(["near_ood", "far_ood"]) & (rows["against"] != "mean of sets") & (rows["split"] != "")
    ]
    sets = sets[~sets["metric"].str.contains("difference")]
    known = sets[["dataset", "split", "role"]].drop_duplicates(["dataset", "split"]).to_dict("records")
    known.sort(key=lambda r: (roles.get(r["role"], 9), r["split"]))
    splits = list(dict.fromkeys(r["split"] for r in known))
    role_of = {r["split"]: r["role"] for r in known}
    lines = []
    for metric in OOD_METRICS:
        part = sets[sets["metric"] == metric]
        groups = part.groupby(["dataset", "model", "score"])
        for (dataset, model, score), group in sorted(groups, key=lambda kv: _score_key(kv[0])):
            line: dict[str, Any] = {
                "metric": metric, "metric_words": OOD_METRICS[metric].split(" (")[0], "images": dataset, "model": model,
                "score": score, "score_words": words.score(score),
            }  # fmt: skip
            shown: pd.Series | None = None
            for split in splits:
                row = _best_row(group, split=split)
                _put_seeds(line, f"set_{split}", row)
                shown = row if shown is None else shown
            line["seeds"] = _seeds(shown)
            lines.append(line)
        for dataset in sorted(part["dataset"].unique()):
            more = _trivial_lines(trivial, dataset, splits, lambda s, m: f"set_{s}", metric=metric)
            for line in more:
                line["metric"], line["metric_words"] = metric, OOD_METRICS[metric].split(" (")[0]
            lines += more
    names = {"near_ood": "near", "far_ood": "far"}
    return Table(
        name="ood_sets",
        title="Out-of-distribution scores, set by set (%)",
        data=_frame(lines),
        columns=(
            Column("metric_words", "metric"),
            Column("images", "images"),
            Column("model", "model"),
            Column("score_words", "score"),
            *(
                Column(f"set_{s}", f"{s} ({names.get(role_of[s], role_of[s].replace('_', ' '))})", "percent")
                for s in splits
            ),
            Column("seeds", "seeds", "count"),
        ),
        caption=(
            "Each set against the in-distribution test set of the same model. Mean ± standard deviation over training "
            "seeds where there are several, with the interval over seeds; otherwise the interval is over images. "
            "Sanity sets are those that a trivial statistic separates; they, shifted, no-object and ambiguous sets "
            "are in no mean. " + "; ".join(CONVENTIONS.values()) + "."
        ),
        empty="Not in this run: no out-of-distribution set was scored.",
    )


def _trivial_lines(
    trivial: pd.DataFrame | None, dataset: str, groups: Iterable[str], key: Any, metric: str | None = None
) -> list[dict[str, Any]]:
    """The row 'best trivial statistic': for each number the best of all statistics, its name beside it."""
    if trivial is None or trivial.empty:
        return []
    rows = trivial[(trivial["dataset"] == dataset) & trivial["value"].notna()]
    line: dict[str, Any] = {"images": dataset, "model": "", "score": "trivial", "score_words": "best trivial statistic"}
    names = []
    for group in groups:
        for wanted in OOD_METRICS if metric is None else [metric]:
            found = rows[(rows["group"] == group) & (rows["metric"] == wanted)]
            if found.empty:
                continue
            best = found.sort_values(["value", "statistic"], ascending=[wanted != "auroc", True], kind="stable").iloc[0]
            bounds = {b: best.get(b) for b in ("ci_low", "ci_high")}
            _put(line, key(group, wanted), pd.Series({"value": best["value"], **bounds}))
            names.append(best["statistic"])
    if not names:
        return []
    line["score_words"] += f" ({', '.join(dict.fromkeys(names))})"
    return [line]


def _score_key(key: tuple[Any, ...]) -> tuple[Any, ...]:
    *place, score = key
    return (*place, *score_order(score))


def score_order(name: str) -> tuple[int, str]:
    """Sorts known scores as the literature lists them, others by name after them."""
    order = list(words.SCORES)
    return (order.index(name) if name in order else len(order), name)


def ood_paired(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Paired differences over training seeds: one score minus another on the same seeds, with t intervals."""
    rows = tidy(metrics)
    rows = rows[(rows["score"] != "") & rows["metric"].str.endswith("_difference") & rows["value"].notna()]
    rows = only(rows[rows["group_id"] != ""], attack=(CLEAN, ""), defense=("none", ""), shift=UNWARPED)
    rows = rows[rows["against"].str.contains(":")]
    kinds = [m for m in ("auroc", *CONVENTIONS) if f"{m}_difference" in set(rows["metric"])]
    lines = []
    keys = rows[["dataset", "split", "model", "score", "against"]].drop_duplicates().to_dict("records")
    rank = {"near_ood": 0, "far_ood": 1}
    for key in sorted(
        keys, key=lambda k: (k["dataset"], rank.get(k["split"], 2), k["split"], k["model"], k["score"], k["against"])
    ):
        model, _, score = key["against"].rpartition(":")
        line: dict[str, Any] = {
            "images": key["dataset"],
            "split": key["split"],
            "sets": {"near_ood": "near mean", "far_ood": "far mean"}.get(key["split"], key["split"]),
            "this": f"{words.score(key['score'])} on {key['model']}",
            "that": f"{words.score(score)} on {model}" if model else words.score(score),
        }
        part = only(rows, **key)
        for kind in kinds:
            row = first(part, metric=f"{kind}_difference")
            _put_seeds(line, kind, row)
            line[f"{kind}_p_holm"] = _p_adjusted(row)
            line[f"{kind}_verdict"] = _verdict(row, better=1 if kind == "auroc" else -1)
        line["seeds"] = int(part["seeds"].dropna().iloc[0]) if part["seeds"].notna().any() else None
        lines.append(line)
    heads = {"auroc": "AUROC", "fpr95_id_positive": "FPR95 (ID positive)", "fpr95_ood_positive": "FPR95 (OOD positive)"}
    return Table(
        name="ood_paired",
        title="Scores compared over training seeds: paired differences (percentage points)",
        data=_frame(lines),
        columns=(
            Column("images", "images"),
            Column("sets", "sets"),
            Column("this", "this"),
            Column("that", "minus that"),
            *(
                column
                for kind in kinds
                for column in (
                    Column(kind, f"{heads[kind]} difference", "difference"),
                    Column(f"{kind}_p_holm", "p (Holm)", "p"),
                    Column(f"{kind}_verdict", "reading"),
                )
            ),
            Column("seeds", "seeds", "count"),
        ),
        caption=(
            "Each training seed gives one difference; the interval is Student's t over seeds. 'no difference shown' "
            "means that the interval holds zero, which is not the same as showing that there is none."
        ),
        empty="Not in this run: no two scores were compared over at least two training seeds.",
    )


def _verdict(row: pd.Series | None, *, better: int) -> str:
    if row is None or absent(row["ci_low"]) or absent(row["ci_high"]):
        return ""
    if row["ci_low"] <= 0 <= row["ci_high"]:
        return "no difference shown"
    return "better" if (row["ci_low"] > 0) == (better > 0) else "worse"


def ood_defended(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Purification x OOD: AUROC of each score when ID and OOD images both pass through a defense first."""
    rows = ood_defended_rows(metrics)
    names = ["none", *sorted(set(rows["defense"]) - {"none"}, key=defense_order)]
    lines = []
    keys = rows[["dataset", "model", "split", "score"]].drop_duplicates().to_dict("records")
    rank = {"near_ood": 0, "far_ood": 1}
    for key in sorted(keys, key=lambda k: (rank[k["split"]], *_score_key((k["dataset"], k["model"], k["score"])))):
        line: dict[str, Any] = {
            "images": key["dataset"], "sets": {"near_ood": "near mean", "far_ood": "far mean"}[key["split"]],
            "split": key["split"], "score": key["score"],
        }  # fmt: skip
        part = only(rows, **key)
        seed = part["model_seed"].iloc[0]
        line["model"], line["score_words"] = full_name(key["model"], seed), words.score(key["score"])
        row = None
        for name in names:
            found = first(part, defense=name)
            row = found if row is None else row
            _put(line, f"defense_{name}", found)
        line["n_id"], line["n_ood"] = _count(row, "n_id"), _count(row, "n_ood")
        lines.append(line)
    return Table(
        name="ood_defended",
        title="Out-of-distribution detection behind a purification defense: AUROC (%)",
        data=_frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("sets", "sets"),
            Column("score_words", "score"),
            *(Column(f"defense_{d}", d, "percent") for d in names),
            Column("n_id", "n ID", "count"),
            Column("n_ood", "n OOD", "count"),
        ),
        caption=(
            "ID and OOD images both pass through the defense, then the model, then the score: what a user who "
            "purifies every input would see. One training seed; 95 % intervals over images."
        ),
        empty="Not in this run: no out-of-distribution set was scored behind a defense.",
    )


def ood_defended_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """AUROC role means by score and defense, for models (one seed each) that were judged behind at least one
    defense.
    """
    rows = tidy(metrics)
    rows = only(rows, metric="auroc", split=("near_ood", "far_ood"), attack=(CLEAN, ""), shift=UNWARPED)
    rows = rows[(rows["score"] != "") & (rows["group_id"] != "") & rows["value"].notna() & rows["model_seed"].notna()]
    rows = rows[rows["against"].isin(["mean of sets", ""])].assign(defense=rows["defense"].replace("", "none"))
    behind = rows[rows["defense"] != "none"]
    lowest = behind.groupby(["dataset", "model"])["model_seed"].min().to_dict()
    wanted = [
        lowest.get((d, m)) == s for d, m, s in zip(rows["dataset"], rows["model"], rows["model_seed"], strict=True)
    ]
    return rows[pd.Series(wanted, index=rows.index, dtype=bool)]


# --------------------------------------------------------------------------------------------------------------- checks


def checks(cells: pd.DataFrame) -> Table:
    """What was flagged, in words: one row per raised check and cell, with the statistic and the remedy."""
    lines = []
    for name, row in _raised(tidy(cells)):
        check = words.check_words(name)
        statistic = row.get(f"stat_{name}")
        lines.append(
            {
                "check": name,
                "title": check.title,
                "cell": words.cell(row),
                "cell_id": row["cell_id"],
                "statistic": None if absent(statistic) else float(statistic),
                "meaning": check.meaning,
                "remedy": check.remedy,
            }
        )
    return Table(
        name="checks",
        title="Raised checks: numbers that should not be read as they stand",
        data=_frame(lines) if lines else pd.DataFrame(),
        columns=(
            Column("title", "check"),
            Column("cell", "where"),
            Column("statistic", "statistic", "decimal"),
            Column("meaning", "what it means"),
            Column("remedy", "what to do"),
        ),
        empty="None: no check was raised.",
        html=checks_page(cells),
    )


def _raised(cells: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    found = [(name, row) for _, row in cells.iterrows() for name in row["flags"].split()]
    order = words.check_names()
    return sorted(
        found,
        key=lambda f: (order.index(f[0]) if f[0] in order else len(order), f[0], words.cell(f[1]), f[1]["cell_id"]),
    )


def checks_page(cells: pd.DataFrame) -> str:
    """The page in words: raised checks with meaning, remedy and cells; then those that ran and stayed silent; then the
    rest.
    """
    cells = tidy(cells)
    names = sorted({c.removeprefix("check_") for c in cells.columns if c.startswith("check_")} | set(_all_flags(cells)))
    found = _raised(cells)
    body = "<h1>Checks: known ways of fooling oneself</h1>\n"
    body += (
        "<p>A wrong robust accuracy rarely looks wrong. These checks look for the known causes in every cell of the "
        "run. A raised check does not change a number; it puts a dagger beside it in the tables and a mark in the "
        "figures.</p>\n"
    )
    body += f"<h2>Raised ({len(found)} times)</h2>\n"
    if not found:
        body += "<p>None.</p>\n"
    for name in dict.fromkeys(n for n, _ in found):
        check = words.check_words(name)
        body += f'<div class="raised"><h2>{html.escape(check.title)}</h2>\n<p>{html.escape(check.meaning)}</p>\n'
        body += f"<p><b>What to do:</b> {html.escape(check.remedy)}</p>\n"
        if check.threshold:
            body += f'<p class="quiet">Raised when: {html.escape(check.threshold)}.</p>\n'
        body += "<ul>\n"
        for _, row in (f for f in found if f[0] == name):
            statistic = row.get(f"stat_{name}")
            value = "" if absent(statistic) else f" (statistic {float(statistic):.3g})"
            body += f"<li>{html.escape(words.cell(row))}{value}</li>\n"
        body += "</ul></div>\n"
    silent, unrun = [], []
    for name in names:
        column = cells[f"check_{name}"] if f"check_{name}" in cells.columns else pd.Series(dtype=object)
        ran = int(column.isin(["ok", "flag"]).sum())
        if ran and not any(n == name for n, _ in found):
            silent.append(f"<li>{html.escape(words.check_words(name).title)}: ran on {ran} cells</li>\n")
        elif not ran and not any(n == name for n, _ in found):
            unrun.append(f"<li>{html.escape(words.check_words(name).title)}</li>\n")
    body += f'<h2>Ran and found nothing ({len(silent)})</h2>\n<ul class="quiet">\n{"".join(silent)}</ul>\n'
    body += f"<h2>Not run here ({len(unrun)})</h2>\n"
    body += '<p class="quiet">The cells that these checks compare are not in this run. Silence here says nothing.</p>\n'
    body += f'<ul class="quiet">\n{"".join(unrun)}</ul>\n'
    return page("Checks", body)


def _all_flags(cells: pd.DataFrame) -> list[str]:
    return [name for text in cells["flags"] for name in text.split()]


def failed(cells: pd.DataFrame) -> Table:
    """Cells that are not ok, or hold rows that are not: with the reason."""
    cells = tidy(cells)
    counts = [c for c in ("n_nan", "n_bound", "n_error") if c in cells.columns]
    bad = ~cells["status"].isin(["ok", ""])
    for name in counts:
        bad |= cells[name].fillna(0) > 0
    lines = []
    for _, row in cells[bad].iterrows():
        lines.append(
            {
                "cell": words.cell(row),
                "cell_id": row["cell_id"],
                "status": row["status"],
                "reason": row["reason"],
                **{c: None if absent(row.get(c)) else int(row[c]) for c in ("n", *counts)},
            }
        )
    lines.sort(key=lambda line: (line["cell"], line["cell_id"]))
    return Table(
        name="failed",
        title="Cells that failed or hold samples that did",
        data=_frame(lines) if lines else pd.DataFrame(),
        columns=(
            Column("cell", "cell"),
            Column("status", "status"),
            Column("reason", "reason"),
            Column("n", "n", "count"),
            Column("n_nan", "NaN", "count"),
            Column("n_bound", "out of bounds", "count"),
            Column("n_error", "errors", "count"),
        ),
        caption="A failed sample is never counted as robust.",
        empty="None: every cell is ok.",
    )


def all_tables(metrics: pd.DataFrame, cells: pd.DataFrame, trivial: pd.DataFrame | None = None) -> dict[str, Table]:
    """Every table of a run by name, in the order of the report."""
    made = (
        robust_accuracy(metrics, cells),
        defenses(metrics, cells),
        ood(metrics, cells, trivial),
        ood_sets(metrics, cells, trivial),
        ood_paired(metrics, cells),
        ood_defended(metrics, cells),
        checks(cells),
        failed(cells),
    )
    return {table.name: table for table in made}


__all__ = [
    "all_tables", "checks", "checks_page", "defenses", "failed", "ood", "ood_defended", "ood_paired", "ood_sets",
    "robust_accuracy",
]  # fmt: skip
