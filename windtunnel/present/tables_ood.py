"""Tables of out-of-distribution scores, undefended and behind a defense."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import count, frame, p_adjusted, put, put_seeds
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import CLEAN, UNWARPED, absent, first, full_name, only, tidy
from windtunnel.present.style import defense_order

CONVENTIONS = {
    "fpr95_id_positive": "FPR95, ID positive (share of OOD accepted where 95 % of ID are accepted)",
    "fpr95_ood_positive": "FPR95, OOD positive (share of ID flagged where 95 % of OOD are flagged)",
}
OOD_METRICS = {"auroc": "AUROC", **CONVENTIONS}
HEADS = {"auroc": "AUROC", "fpr95_id_positive": "FPR95 (ID positive)", "fpr95_ood_positive": "FPR95 (OOD positive)"}
LEVEL = 0.05


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
                put_seeds(line, f"{group}_{metric}", row)
                shown = row if shown is None else shown
        line["seeds"], line["n_id"], line["n_ood"] = _seeds(shown), count(shown, "n_id"), count(shown, "n_ood")
        lines.append(line)
    for dataset in sorted(means["dataset"].unique()):
        lines += _trivial_lines(trivial, dataset, keys, lambda g, m: f"{g}_{m}")
    return Table(
        name="ood",
        title="Out-of-distribution scores: near and far means (%)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("score_words", "score"),
            *(
                Column(f"{group}_{metric}", f"{word} {HEADS[metric]}", "percent")
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
            "statistic knows nothing of any model: a score that does not beat it has shown nothing. An AUROC below 50 "
            "ranks these sets the wrong way round: Mahalanobis distance in raw features calls the short features of "
            "pictures without a digit typical."
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
                put_seeds(line, f"set_{split}", row)
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
        data=frame(lines),
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
            put(line, key(group, wanted), pd.Series({"value": best["value"], **bounds}))
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
            put_seeds(line, kind, row)
            line[f"{kind}_p_holm"] = p_adjusted(row)
            line[f"{kind}_verdict"] = _verdict(row, better=1 if kind == "auroc" else -1)
        line["seeds"] = int(part["seeds"].dropna().iloc[0]) if part["seeds"].notna().any() else None
        lines.append(line)
    return Table(
        name="ood_paired",
        title="Scores compared over training seeds: paired differences (percentage points)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("sets", "sets"),
            Column("this", "this"),
            Column("that", "minus that"),
            *(
                column
                for kind in kinds
                for column in (
                    Column(kind, f"{HEADS[kind]} difference", "difference"),
                    Column(f"{kind}_p_holm", "p (Holm)", "p"),
                    Column(f"{kind}_verdict", "reading"),
                )
            ),
            Column("seeds", "seeds", "count"),
        ),
        caption=(
            "Each training seed gives one difference; the interval is Student's t over seeds, p that of the "
            "paired t test after Holm. 'no difference shown' "
            "means that the interval holds zero, which is not the same as showing that there is none."
        ),
        empty="Not in this run: no two scores were compared over at least two training seeds.",
    )


def _verdict(row: pd.Series | None, *, better: int) -> str:
    """In words, and only as far as it goes: an interval clear of zero that Holm's adjustment does not take back."""
    if row is None or absent(row["ci_low"]) or absent(row["ci_high"]):
        return ""
    p = p_adjusted(row)
    if row["ci_low"] <= 0 <= row["ci_high"] or (p is not None and p >= LEVEL):
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
            put(line, f"defense_{name}", found)
        line["n_id"], line["n_ood"] = count(row, "n_id"), count(row, "n_ood")
        lines.append(line)
    return Table(
        name="ood_defended",
        title="Out-of-distribution detection behind a purification defense: AUROC (%)",
        data=frame(lines),
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
