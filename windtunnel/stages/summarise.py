"""Samples -> metrics and cells: pure functions of tables, no file is read or written here.

``cell_metrics`` runs once per model and training seed, ``group_metrics`` once over the rows of all models;
``metrics_table`` and ``cells_table`` put rows into the schemas of ``docs/results.md``, in a fixed order. What counts as
robust, which ID cell a detection metric uses and what is compared with what is decided here and nowhere else; the
formulas live in ``windtunnel.metrics``, the honesty columns in ``windtunnel.checks``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from windtunnel import store
from windtunnel.checks import CHECKS, run_checks
from windtunnel.checks.base import (
    COLUMNS,
    CONTROL,
    NONE,
    UNKNOWN,
    Cell,
    Evidence,
    aligned,
    gather,
    own_name,
    relation_of,
)
from windtunnel.metrics import classification, detection, intervals

Row = dict[str, Any]
Info = Mapping[str, Any]
Side = tuple[str, str]

JUDGED_ROLES = ("id", "shifted")
MEAN_ROLES = ("near_ood", "far_ood")
UNTABLED_ROLES = ("validation", "fit")
MEAN_OF_SETS = "mean of sets"
OWN = "own"
CONDITION = (
    "attack", "threat", "eps", "source_model", "attack_defense", "through", "defense", "mode", "iterate",
)  # fmt: skip
KEYS = ("dataset", "split", "role", "shift", "severity", "model", "model_seed", *CONDITION)
SAMPLE_COLUMNS = (*COLUMNS, "conf", "psnr", "ssim", "bpp_file", "bpp_payload")
"""Columns of the samples that ``cell_metrics`` needs beside the scores'."""
PAIRS: tuple[tuple[Side, Side], ...] = (
    (("digits-abet", "abet"), ("digits-cnn", "energy")),
    (("digits-abet", "abet"), ("digits-cnn", "msp")),
    (("digits-abet", "abet"), ("digits-abet", "abet-unablated")),
    (("digits-abet", "abet"), ("digits-abet", "msp")),
    (("digits-abet", "abet"), ("digits-coslin", "energy")),
)
"""(this model, this score) against (that model, that score), over the training seeds that both have.

Energy on an AbeT net is no pair of its own: that net's logits are divided by T already, so it is AbeT to the digit.
"""
PAIRED_METRICS = ("auroc", "fpr95_id_positive")
TOLERATED_ERRORS = 0.01
UPPER_BOUND = "upper bound"
NOT_THROUGH = "not attacked through"


# ------------------------------------------------------------------------------------------------------------ one model


def cell_metrics(
    samples: pd.DataFrame,
    *,
    scores: Sequence[str],
    cell_infos: Iterable[Info] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> list[Row]:
    """Every number of one model and training seed that is not a mean over seeds.

    ``samples`` in the sample schema (at least ``SAMPLE_COLUMNS`` and the score columns); ``scores`` by name, in the
    run's order. Of ``cell_infos`` are used: ``own_name``; ``has_scores``; ``rule_is_generic`` (the dagger); and cells
    with status ``error`` that left no rows, which make a robust accuracy or a mean over sets null instead of leaving
    them out.
    """
    infos = [dict(i) for i in cell_infos]
    columns = ["conf", "psnr", "ssim", "bpp_file", "bpp_payload", *(store.score_column(s) for s in scores)]
    evidence = gather(samples, infos, extra=columns)
    failed = [i for i in infos if i.get("status") == "error" and str(i["cell_id"]) not in evidence.by_id]
    failed += [{**c.key, **c.info, "cell_id": c.cell_id} for c in evidence.cells if c.failed]
    rows: list[Row] = []
    for cell in evidence.cells:
        rows += _one_cell(cell, replicates, seed)
    rows += _detection(evidence, scores, failed, replicates, seed)
    rows += _robust(evidence, failed, replicates, seed)
    rows += _against_none(evidence, replicates, seed)
    rows += _consistency(evidence, replicates, seed)
    return rows


def _row(cell: Cell, **values: Any) -> Row:
    return {**{k: cell.key[k] for k in KEYS}, "cell_id": cell.cell_id, "value": None, **values}


def _estimate(found: intervals.Estimate) -> Row:
    return {
        "value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "ci_method": found.ci_method,
        "n": found.n, "n_clusters": found.n_clusters,
    }  # fmt: skip


def _join(*notes: str | None) -> str | None:
    return "; ".join(dict.fromkeys(n for n in notes if n)) or None


def _states(cell: Cell) -> str | None:
    counts = [(s, int((cell.status == s).sum())) for s in ("nan", "bound", "error")]
    return _join(*(f"{count} of {cell.n} rows {state}, counted wrong" for state, count in counts if count))


def _accuracy(cell: Cell, replicates: int, seed: int) -> Row:
    """Accuracy of all rows; null above 1 % of errors, which say nothing of the model: the note gives the bounds."""
    errors = int(np.isin(cell.status, UNKNOWN).sum())
    if errors > TOLERATED_ERRORS * cell.n:
        low = np.nansum(cell.counted) / cell.n
        note = f"{errors} of {cell.n} rows error: between {low:.4f} and {low + errors / cell.n:.4f}"
        return {"n": cell.n, "note": note}
    random = "mean p(correct) over draws" if cell.is_random else None
    found = classification.accuracy(cell.counted, cell.sources, replicates=replicates, seed=seed)
    return {**_estimate(found), "note": _join(_states(cell), random)}


def _one_cell(cell: Cell, replicates: int, seed: int) -> list[Row]:
    rows: list[Row] = []

    def add(metric: str, higher_is_better: bool | None, **values: Any) -> None:
        rows.append(_row(cell, metric=metric, higher_is_better=higher_is_better, **values))

    known = ~np.isnan(cell.columns["label"])
    if known.any() and cell.role in JUDGED_ROLES:
        whole = _accuracy(cell, replicates, seed)
        add("accuracy", True, **whole)
        if whole.get("value") is not None:
            worst = classification.worst_class_accuracy(cell.counted[known], cell.columns["label"][known].astype(int))
            add("worst_class_accuracy", True, **_estimate(worst.estimate), note=f"class {worst.label}")
        if not cell.is_random:
            p, hit = cell.columns["conf"], cell.hit
            for metric, value in (
                ("ece15", classification.ece(p, hit)),
                ("ece15_debiased", classification.ece_debiased(p, hit)),
                ("ece15_null", classification.ece_null(p)),
                ("brier_top", classification.brier_top(p, hit)),
            ):
                note = "a row has no confidence" if value is None else None
                add(metric, None if metric == "ece15_null" else False, value=value, n=cell.n, note=note)
    confidence = cell.columns["conf"]
    if np.isfinite(confidence).any():
        add("mean_confidence", None, **_mean_of_known(confidence))
    for metric, better in (("psnr", True), ("ssim", True), ("bpp_file", False), ("bpp_payload", False)):
        if not np.isnan(cell.columns[metric]).all():
            add(metric, better, **_mean_of_known(cell.columns[metric]))
    if cell.relation != "clean" and not np.isnan(cell.columns["success_float"]).all():
        add("success_float", None, **_mean_of_known(cell.columns["success_float"]))
    return rows


def _mean_of_known(values: np.ndarray) -> Row:
    """Mean over finite values; identical pictures have an infinite PSNR, absent ones none: the note counts them."""
    finite = values[np.isfinite(values)]
    infinite = int(np.isinf(values).sum())
    note = f"{infinite} infinite values left out" if infinite else None
    return {"value": float(finite.mean()) if finite.size else None, "n": int(finite.size), "note": note}


# ------------------------------------------------------------------------------------------------------------ detection


def _detection(evidence: Evidence, scores: Sequence[str], failed: list[Row], replicates: int, seed: int) -> list[Row]:
    """AUROC and the like of every cell against its ID cell, and the means over near and far sets, score by score."""
    columns = {s: store.score_column(s) for s in scores}
    scored = [c for c in evidence.cells if any(not np.isnan(c.columns[name]).all() for name in columns.values())]
    references = [c for c in scored if c.relation == "clean" and c.role == "id" and c.shift == NONE]
    others: dict[str, list[Cell]] = {}
    for cell in scored:
        reference = _reference(cell, references)
        if reference is not None and cell.cell_id != reference.cell_id and _may_be_scored(cell):
            others.setdefault(reference.cell_id, []).append(cell)
    rows: list[Row] = []
    for reference in references:
        cells = others.get(reference.cell_id, [])
        if not cells:
            continue
        weights = detection.detection_weights(
            reference.sources, {c.cell_id: c.sources for c in cells}, replicates, seed
        )
        for score, column in columns.items():
            inside = reference.columns[column]
            with_score = [c for c in cells if not np.isnan(c.columns[column]).all()]
            if np.isnan(inside).all() or not with_score:
                continue
            means = _means(with_score)
            found = detection.detection_with_intervals(
                inside,
                {c.cell_id: c.columns[column] for c in with_score},
                reference.sources,
                {c.cell_id: c.sources for c in with_score},
                means={name: [c.cell_id for c in members] for name, members in means.items()},
                weights=weights,
            )
            rows += _detection_rows(evidence, reference, score, means, found, failed)
    return rows


def _may_be_scored(cell: Cell) -> bool:
    return cell.mode != "search" and cell.role not in UNTABLED_ROLES


def _reference(cell: Cell, references: Sequence[Cell]) -> Cell | None:
    """The clean ID cell of the same model, seed and defense: of the same data set, else the only one there is."""
    same = [r for r in references if (r.model, r.model_seed, r.defense) == (cell.model, cell.model_seed, cell.defense)]
    near = [r for r in same if r.dataset == cell.dataset] or same
    split = [r for r in near if r.split == cell.split]
    if split:
        return split[0]
    return near[0] if len(near) == 1 else None


def _means(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.role in MEAN_ROLES:
            condition = [cell.key[k] for k in (*CONDITION, "attack_seed", "shift", "severity")]
            found.setdefault(f"{cell.role} {store.canonical_json(condition)}", []).append(cell)
    return found


def _detection_rows(
    evidence: Evidence,
    reference: Cell,
    score: str,
    means: Mapping[str, list[Cell]],
    found: Sequence[Mapping[str, Any]],
    failed: list[Row],
) -> list[Row]:
    rows: list[Row] = []
    for entry in found:
        members = means.get(entry["against"])
        missing = entry["n_nan_id"] + entry["n_nan_ood"]
        note = f"{missing} rows without a score" if missing else None
        shared: Row = {
            "reference_cell_id": reference.cell_id, "score": score, "n_id": entry["n_id"], "n_ood": entry["n_ood"],
            "n": entry["n_id"] + entry["n_ood"], "n_clusters": entry["n_clusters"],
        }  # fmt: skip
        number = {k: entry[k] for k in ("metric", "value", "ci_low", "ci_high", "ci_method", "higher_is_better")}
        if members is None:
            cell = evidence.by_id[entry["against"]]
            shared["against"] = "clean" if cell.role in JUDGED_ROLES else None
            rows.append(_row(cell, **shared, **number, note=note))
            if entry["metric"] == "auroc":
                rows.append(_row(cell, **shared, metric="distinct_values", value=float(entry["n_distinct"])))
                rows.append(_row(cell, **shared, metric="tie_share", value=entry["tie_share"]))
            continue
        first = members[0]
        lost = [i for i in failed if _would_be_member(i, first)]
        if lost:
            number |= {"value": None, "ci_low": None, "ci_high": None, "ci_method": None}
            note = _join(note, *(f"cell {i['cell_id']} failed" for i in lost))
        ids = [c.cell_id for c in members]
        rows.append(
            _row(first, **shared, **number)
            | {
                "cell_id": None,
                "group_id": store.short_id(["mean of sets", reference.cell_id, score, ids]),
                "members": ids,
                "dataset": reference.dataset,
                "split": first.role,
                "against": MEAN_OF_SETS,
                "note": _join(f"{len(ids)} sets", note),
            }
        )
    return rows


def _would_be_member(info: Row, member: Cell) -> bool:
    keys = ("role", "model", "model_seed", "defense", "attack")
    return bool(info.get("has_scores", True)) and all(info.get(k) == member.key[k] for k in keys)


# ------------------------------------------------------------------------------------------------------ robust accuracy


def _robust(evidence: Evidence, failed: list[Row], replicates: int, seed: int) -> list[Row]:
    """Robust accuracy per pipeline and threat: right on the clean image and under every candidate.

    Candidates are all cells judged on the pipeline, noise, transferred images, every rule and every iterate included;
    ``search`` images only where the pipeline itself was attacked. A pipeline that was not attacked itself has no robust
    accuracy: null, with the reason.
    """
    groups = evidence.groups(
        key=lambda c: (c.judge, c.threat),
        where=lambda c: c.relation != "clean" and c.labelled and c.role in JUDGED_ROLES and _is_candidate(c),
    )
    rows: list[Row] = []
    for cells in groups.values():
        defended = cells[0].defense != NONE
        # random signs in place of the gradient break what any search breaks: candidates, but no attack on the defense
        attacked = [c for c in cells if c.on_own_pipeline and c.through != CONTROL]
        kinds = {
            "bare": [c for c in cells if c.relation == "bare"],
            "unaware": [c for c in cells if c.relation == "unaware"],
            "through": [c for c in cells if c.relation == "through" and c.through != CONTROL],
            "all": cells,
        }
        lost = [i for i in failed if _pipeline_of(i) == _pipeline_of(cells[0].key)]
        for against, members in kinds.items():
            gone = [i for i in lost if against in ("all", _relation(i))]
            why = None
            if against == "all" and not attacked:
                why = NOT_THROUGH if defended else "not attacked itself"
            if against == "through" and defended and not members:
                why = None if gone else NOT_THROUGH
            elif not members and not gone:
                continue
            rows.append(_robust_row(evidence, cells, members, against, gone, why, replicates, seed))
            rows += _worst_class(evidence, members, rows[-1])
            if against != "all":
                rows += _by_attack(evidence, members, against, replicates, seed)
    return rows + _robust_of_nothing(groups.values(), failed)


def _robust_of_nothing(groups: Iterable[Sequence[Cell]], failed: Sequence[Row]) -> list[Row]:
    """Null rows for pipelines and threats of which every attacked cell failed."""
    seen = {_pipeline_of(cells[0].key) for cells in groups}
    found: dict[tuple[Any, ...], list[Row]] = {}
    for info in failed:
        if info.get("attack", NONE) != NONE and info.get("role") in JUDGED_ROLES and _pipeline_of(info) not in seen:
            found.setdefault(_pipeline_of(info), []).append(info)
    blank = ("source_model", "attack", "attack_defense", "through", "mode", "iterate")
    return [
        {k: infos[0].get(k) for k in KEYS}
        | dict.fromkeys(blank)
        | {
            "shift": infos[0].get("shift") or NONE,
            "group_id": store.short_id(["robust_accuracy", against, *(str(i["cell_id"]) for i in infos)]),
            "members": [],
            "against": against,
            "metric": "robust_accuracy",
            "value": None,
            "higher_is_better": True,
            "note": _join(*(f"cell {i['cell_id']} failed" for i in infos)),
        }
        for infos in found.values()
        for against in dict.fromkeys([*map(_relation, infos), "all"])
        if against in ("bare", "unaware", "through", "all")
    ]


def _is_candidate(cell: Cell) -> bool:
    return cell.on_own_pipeline or cell.mode != "search"


def _pipeline_of(key: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("model", "model_seed", "defense", "threat", "dataset", "split", "severity")
    return (*(key.get(k) for k in names), key.get("shift") or NONE)


def _relation(info: Row) -> str:
    return relation_of(info, own_name(info["model"], info["model_seed"], info))


def _robust_row(
    evidence: Evidence,
    group: Sequence[Cell],
    members: Sequence[Cell],
    against: str,
    failed: Sequence[Row],
    why_null: str | None,
    replicates: int,
    seed: int,
    metric: str = "robust_accuracy",
) -> Row:
    """One robust accuracy; ``members`` beside the clean cell. ``why_null`` or a failed member leaves the value null."""
    first = group[0]
    clean = evidence.clean(first)
    candidates = ([clean] if clean is not None else []) + list(members)
    ids = [c.cell_id for c in candidates]
    row = _row(first) | {
        **dict.fromkeys(("cell_id", "source_model", "attack", "attack_defense", "through", "mode", "iterate")),
        "group_id": store.short_id([metric, against, ids, first.judge, first.threat]),
        "members": ids, "against": against, "metric": metric, "higher_is_better": True,
    }  # fmt: skip
    dagger = UPPER_BOUND if against in ("through", "all") and _only_generic(group) else None
    reasons = [why_null, *(f"cell {i['cell_id']} failed" for i in failed)]
    if clean is None:
        reasons.append("no clean cell of this pipeline")
    if not members or clean is None:
        return row | {"note": _join(*reasons, dagger)}
    ids_of, values = aligned(candidates, "counted")
    common = ~np.isnan(values).any(axis=0)
    if not common.any():
        return row | {"note": _join(*reasons, "no sample is in every member", dagger), "n": 0}
    hits = values[:, common].T
    sources = _sources_of(clean, ids_of[common])
    note = _lowest(members, hits[:, 1:])
    if hits.shape[0] < max(c.n for c in members):
        note = _join(note, f"on the {hits.shape[0]} samples in every member")
    if any(c.is_random for c in candidates):
        found = intervals.mean_estimate(hits.min(axis=1), sources, replicates=replicates, seed=seed)
        note = _join(note, "mean over samples of the least p(correct)")
    else:
        errors = _error_flags(candidates)[:, common].T
        judged = classification.robust_accuracy(hits, sources, errors=errors, replicates=replicates, seed=seed)
        found = judged.estimate
        note = _join(note, judged.reason)
    number = _estimate(found)
    if any(reasons):
        number |= {"value": None, "ci_low": None, "ci_high": None, "ci_method": None}
    return row | number | {"note": _join(*reasons, note, dagger)}


def _worst_class(evidence: Evidence, members: Sequence[Cell], whole: Row) -> list[Row]:
    """The class of the lowest robust accuracy, over the same candidates and samples as the row of all classes."""
    clean = evidence.clean(members[0]) if members else None
    if clean is None or whole.get("value") is None or any(c.is_random for c in members):
        return []
    ids, values = aligned([clean, *members], "counted")
    common = ~np.isnan(values).any(axis=0)
    order = np.argsort(clean.ids)
    labels = clean.columns["label"][order][np.isin(clean.ids[order], ids[common])]
    worst = classification.worst_class_accuracy(values[:, common].min(axis=0), labels.astype(int))
    metric = "worst_class_robust_accuracy"
    return [
        whole
        | {"group_id": store.short_id([metric, whole["group_id"]]), "metric": metric, "note": f"class {worst.label}"}
        | _estimate(worst.estimate)
    ]


def _only_generic(group: Sequence[Cell]) -> bool:
    """Whether the pipeline was attacked through, and by no backward rule that knows its defense."""
    rules = [bool(c.info.get("rule_is_generic")) for c in group if c.relation == "through" and c.through != CONTROL]
    return bool(rules) and all(rules)


def _sources_of(cell: Cell, ids: np.ndarray) -> np.ndarray:
    """Source ids of some of a cell's samples, in the order of ``aligned`` (ascending ids)."""
    order = np.argsort(cell.ids)
    return cell.sources[order][np.isin(cell.ids[order], ids)]


def _error_flags(cells: Sequence[Cell]) -> np.ndarray:
    """[cells, samples] whether the row ended in an error or outside its ball, in the order of ``aligned``."""
    ids = np.unique(np.concatenate([c.ids for c in cells]))
    flags = np.zeros((len(cells), len(ids)), dtype=bool)
    for place, cell in enumerate(cells):
        flags[place, np.searchsorted(ids, cell.ids)] = np.isin(cell.status, UNKNOWN)
    return flags


def _lowest(members: Sequence[Cell], hits: np.ndarray) -> str:
    accuracies = hits.mean(axis=0)
    worst = members[int(np.argmin(accuracies))]
    source = f" from {worst.source_model}" if worst.relation == "transfer" else ""
    return f"lowest: {worst.attack} {worst.through} {worst.iterate}{source} {worst.cell_id} {accuracies.min():.4f}"


def _by_attack(evidence: Evidence, members: Sequence[Cell], against: str, replicates: int, seed: int) -> list[Row]:
    """The same for one attack alone and, through a defense, for one rule alone: over its iterates and seeds."""
    rows: list[Row] = []
    for attack in dict.fromkeys(c.attack for c in members):
        mine = [c for c in members if c.attack == attack]
        choices: list[tuple[str | None, list[Cell]]] = [(None, mine)]
        if against == "through":
            choices += [
                (rule, [c for c in mine if c.through == rule]) for rule in dict.fromkeys(c.through for c in mine)
            ]
        for rule, cells in choices:
            row = _robust_row(
                evidence, cells, cells, against, [], None, replicates, seed, metric="robust_accuracy_by_attack"
            )
            rows.append(row | {"attack": attack, "through": rule, "attack_defense": cells[0].attack_defense})
    return rows


# ----------------------------------------------------------------------------------------------- a defense against none


def _against_none(evidence: Evidence, replicates: int, seed: int) -> list[Row]:
    """Accuracy with a defense minus without, on the same clean or unaware-attacked images."""

    def images_key(cell: Cell) -> tuple[Any, ...]:
        return (
            cell.images,
            cell.attack,
            cell.threat,
            cell.attack_seed,
            cell.mode,
            cell.iterate,
            cell.model,
            cell.model_seed,
        )

    plain = {
        images_key(c): c
        for c in evidence.cells
        if c.defense == NONE and c.relation in ("clean", "bare") and c.mode != "search" and c.labelled
    }
    rows: list[Row] = []
    for cell in evidence.cells:
        if cell.defense == NONE or cell.relation not in ("clean", "unaware") or cell.role not in JUDGED_ROLES:
            continue
        baseline = plain.get(images_key(cell))
        if baseline is None or not cell.labelled or cell.mode == "search":
            continue
        ids, values = aligned([cell, baseline])
        common = ~np.isnan(values).any(axis=0)
        if not common.any():
            continue
        sources = _sources_of(cell, ids[common])
        found = intervals.paired_difference(
            values[0, common], values[1, common], sources, replicates=replicates, seed=seed
        )
        note = _join(
            found.p_method, None if found.mde is None else f"detectable difference {found.mde:.3f}", _states(cell)
        )
        rows.append(
            _row(
                cell, baseline_cell_id=baseline.cell_id, against=NONE, metric="accuracy_difference", value=found.value,
                ci_low=found.ci_low, ci_high=found.ci_high, ci_method=found.ci_method, p_value=found.p_value, n=found.n,
                n_clusters=found.n_clusters, higher_is_better=True, note=note,
            )
        )  # fmt: skip
    return rows


def _consistency(evidence: Evidence, replicates: int, seed: int) -> list[Row]:
    """Share of images whose answer a shift leaves as it was, right or wrong: P[f(x) = f(T x)], same pipeline.

    After Shifman & Weiss, Lost in Translation (https://arxiv.org/abs/2404.07153). Clean cells of deterministic
    pipelines; a row without a prediction on either side counts as changed.
    """

    def pipeline(cell: Cell) -> tuple[Any, ...]:
        return (cell.dataset, cell.split, cell.model, cell.model_seed, cell.defense)

    clean = [c for c in evidence.cells if c.relation == "clean" and not c.is_random]
    unshifted = {pipeline(c): c for c in clean if c.shift == NONE}
    rows: list[Row] = []
    for cell in clean:
        reference = unshifted.get(pipeline(cell))
        if cell.shift == NONE or reference is None:
            continue
        ids, answers = aligned([cell, reference], "pred")
        common = np.isin(ids, cell.ids) & np.isin(ids, reference.ids)
        if not common.any():
            continue
        same = (answers[0, common] == answers[1, common]).astype(float)
        found = classification.accuracy(same, _sources_of(cell, ids[common]), replicates=replicates, seed=seed)
        rows.append(
            _row(
                cell, baseline_cell_id=reference.cell_id, against="unshifted", metric="consistency",
                higher_is_better=True, **_estimate(found),
            )
        )  # fmt: skip
    return rows


# ----------------------------------------------------------------------------------------------------------- over seeds

SEED_KEYS = (
    "dataset", "split", "role", "shift", "severity", "against", "model", "attack", "threat", "eps", "attack_defense",
    "defense", "through", "mode", "iterate", "score", "metric",
)  # fmt: skip


def group_metrics(rows: Iterable[Row], *, pairs: Sequence[tuple[Side, Side]] = PAIRS) -> list[Row]:
    """What takes all models: means over training seeds, and differences between scores paired over seeds.

    ``rows`` are those of ``cell_metrics`` for every model (read back from a table or not). A seed mean exists where
    at least two training seeds have the number; several attack seeds of one training seed are averaged first. If a
    seed's number is null, so is the mean.
    """
    by_seed = _by_seed(rows)
    return _seed_means(by_seed) + _paired_over_seeds(by_seed, pairs)


def _by_seed(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[int, list[Row]]]:
    listed = [
        r for r in rows if r.get("model") is not None and r.get("model_seed") is not None and r.get("seeds") is None
    ]
    first_seed: dict[str, int] = {}
    for row in listed:
        first_seed[row["model"]] = min(int(row["model_seed"]), first_seed.get(row["model"], int(row["model_seed"])))
    found: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in listed:
        if row.get("metric") in ("distinct_values", "tie_share"):
            continue
        key = (_source(row, first_seed[row["model"]]), *(row.get(k) for k in SEED_KEYS))
        found.setdefault(key, {}).setdefault(int(row["model_seed"]), []).append(row)
    return found


def _source(row: Row, first_seed: int) -> str | None:
    """The attacked model, the judged one being ``own`` whatever its seed: so the seeds of one family share a key."""
    source, model, seed = row.get("source_model"), row["model"], int(row["model_seed"])
    if source is None:
        return None
    return OWN if source == f"{model}-s{seed}" or (source == model and seed == first_seed) else source


def _value(rows: Sequence[Row]) -> float | None:
    values = [r.get("value") for r in sorted(rows, key=lambda r: str(r.get("cell_id") or r.get("group_id")))]
    return None if any(v is None for v in values) else float(np.mean(values))


def _common(rows: Sequence[Row], name: str) -> Any:
    values = {r.get(name) for r in rows}
    return values.pop() if len(values) == 1 else None


def _seed_means(by_seed: Mapping[tuple[Any, ...], dict[int, list[Row]]]) -> list[Row]:
    out: list[Row] = []
    for key, seeds in by_seed.items():
        if len(seeds) < 2:
            continue
        everything = [r for s in sorted(seeds) for r in seeds[s]]
        members = sorted({str(r.get("cell_id") or r.get("group_id")) for r in everything})
        summary = intervals.t_interval([_value(seeds[s]) for s in sorted(seeds)])
        row = dict(zip(SEED_KEYS, key[1:], strict=True))
        out.append(
            row
            | {
                "group_id": store.short_id(["seed mean", *key, members]),
                "members": members,
                "source_model": key[0] if key[0] != OWN else None,
                "value": summary.mean,
                "ci_low": summary.ci_low,
                "ci_high": summary.ci_high,
                "ci_method": summary.ci_method,
                "seeds": summary.seeds,
                "seed_sd": summary.sd,
                "higher_is_better": everything[0].get("higher_is_better"),
                **{name: _common(everything, name) for name in ("n", "n_id", "n_ood", "n_clusters")},
                "note": _join("mean over training seeds", UPPER_BOUND if _any_note(everything, UPPER_BOUND) else None),
            }
        )
    return out


def _any_note(rows: Sequence[Row], words: str) -> bool:
    return any(words in (r.get("note") or "").split("; ") for r in rows)


def _paired_over_seeds(
    by_seed: Mapping[tuple[Any, ...], dict[int, list[Row]]], pairs: Sequence[tuple[Side, Side]]
) -> list[Row]:
    place = {name: i + 1 for i, name in enumerate(SEED_KEYS)}
    wanted = {side for pair in pairs for side in pair}
    table: dict[Side, dict[tuple[Any, ...], dict[int, list[Row]]]] = {side: {} for side in wanted}
    for key, seeds in by_seed.items():
        side = (key[place["model"]], key[place["score"]])
        if side in table and key[place["metric"]] in PAIRED_METRICS:
            rest = tuple(v for i, v in enumerate(key) if i not in (place["model"], place["score"]))
            table[side][rest] = seeds
    out: list[Row] = []
    for this, that in pairs:
        for rest, mine in table[this].items():
            theirs = table[that].get(rest, {})
            shared = sorted(set(mine) & set(theirs))
            if len(shared) < 2:
                continue
            gaps = [_gap(_value(mine[s]), _value(theirs[s])) for s in shared]
            first = mine[shared[0]][0]
            both = [r for s in shared for r in (*mine[s], *theirs[s])]
            members = sorted({str(r.get("cell_id") or r.get("group_id")) for r in both})
            summary = intervals.t_interval(gaps)
            over_sets = "mean of sets; " if first.get("against") == MEAN_OF_SETS else ""
            out.append(
                {name: first.get(name) for name in SEED_KEYS}
                | {
                    "group_id": store.short_id(["paired over seeds", this, that, *rest, members]), "members": members,
                    "against": f"{that[0]}:{that[1]}", "metric": f"{first['metric']}_difference",
                    "value": summary.mean, "ci_low": summary.ci_low, "ci_high": summary.ci_high,
                    "ci_method": summary.ci_method, "p_value": _paired_t(summary), "seeds": summary.seeds,
                    "seed_sd": summary.sd, "higher_is_better": first.get("higher_is_better"),
                    **{name: _common(both, name) for name in ("n", "n_id", "n_ood")},
                    "note": f"{over_sets}paired t over training seeds",
                }
            )  # fmt: skip
    return out


def _gap(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _paired_t(summary: intervals.SeedSummary) -> float | None:
    """Two-sided p of the paired t test; where all gaps are equal 1 if that is no gap, else 0; null without a mean."""
    if summary.mean is None or summary.sd is None:
        return None
    if summary.sd <= 1e-12:
        return 1.0 if abs(summary.mean) <= 1e-12 else 0.0
    return float(2 * stats.t.sf(abs(summary.mean) / (summary.sd / summary.seeds**0.5), summary.seeds - 1))


# ---------------------------------------------------------------------------------------------------------- diagnostics


def diagnostic_metrics(measured: pd.DataFrame, *, replicates: int = 1000, seed: int = 0) -> list[Row]:
    """The mean of every quantity of every measurement over the samples that it is defined for, with its interval.

    ``measured`` in the schema of ``diagnostics.parquet``; the metric is named ``<diagnostic>.<quantity>``. Quantities
    that begin with ``slice_`` are pictures, one number per place, and have no row.
    """
    measured = measured[~measured["quantity"].astype(str).str.startswith("slice_")]
    keys = ["dataset", "split", "shift", "model", "model_seed", "defense", "through", "threat", "eps"]
    rows: list[Row] = []
    for values, part in measured.groupby([*keys, "diagnostic", "quantity"], sort=True, dropna=False):
        key = dict(zip(keys, values, strict=False))
        diagnostic, quantity = values[-2:]
        known = part.dropna(subset="value").sort_values("sample_id")
        sources = known["source_id"].where(known["source_id"].notna(), known["sample_id"])
        found = intervals.mean_estimate(
            known["value"].to_numpy(dtype=np.float64), sources.to_numpy(dtype=object), replicates=replicates, seed=seed
        ) if len(known) else None  # fmt: skip
        absent = len(part) - len(known)
        rows.append(
            key
            | {"model_seed": int(key["model_seed"]), "role": "id", "metric": f"{diagnostic}.{quantity}"}
            | {"group_id": store.short_id(["diagnostic", *(str(v) for v in values)]), "members": []}
            | (_estimate(found) if found else {"value": None, "n": 0})
            | {"note": f"not defined for {absent} of {len(part)} samples" if absent else None}
        )
    return rows


# --------------------------------------------------------------------------------------------------------------- tables


def metrics_table(rows: Iterable[Row]) -> pa.Table:
    """Rows in the schema of ``metrics.parquet``, in a fixed order, with Holm's adjustment.

    Families of tests: all ``accuracy_difference`` rows; and of the differences paired over seeds, all means of sets
    under one condition (attack, defense), and all single sets under one condition.
    """
    listed = [dict(r) for r in rows]
    keys = [name for name, _ in store.METRIC_FIELDS]
    listed.sort(key=lambda r: tuple(_sortable(r.get(k)) for k in ORDER))
    for tests in _families(listed).values():
        for row, adjusted in zip(tests, intervals.holm([r["p_value"] for r in tests]), strict=True):
            row["p_adjusted"] = adjusted
    return store.table_from_columns({k: [r.get(k) for r in listed] for k in keys}, store.schema(store.METRIC_FIELDS))


ORDER = (
    "model",
    "model_seed",
    "seeds",
    "dataset",
    "role",
    "split",
    "shift",
    "severity",
    "defense",
    "attack",
    "threat",
    "eps",
    "source_model",
    "attack_defense",
    "through",
    "mode",
    "iterate",
    "against",
    "score",
    "metric",
    "cell_id",
    "group_id",
)


def _sortable(value: Any) -> tuple[int, Any]:
    """Nulls first, numbers by size, words by letters: one column never mixes them."""
    return (0, 0) if value is None else (1, value)


def _families(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        row["p_adjusted"] = None
        if row.get("p_value") is None:
            continue
        if row["metric"] == "accuracy_difference":
            family: tuple[Any, ...] = ("accuracy_difference",)
        else:
            of_sets = "mean of sets" in (row.get("note") or "")
            family = ("over seeds", of_sets, *(row.get(k) for k in CONDITION if k != "source_model"))
        found.setdefault(family, []).append(row)
    return found


_S, _B = pa.string(), pa.bool_()
CELL_KEYS: tuple[str, ...] = (
    "cell_id",
    "dataset",
    "split",
    "role",
    "shift",
    "severity",
    "model",
    "model_seed",
    "source_model",
    "attack",
    "threat",
    "norm",
    "eps",
    "eps_255",
    "attack_seed",
    "attack_defense",
    "through",
    "defense",
    "mode",
    "iterate",
)
CELL_FIELDS: list[tuple[str, pa.DataType]] = [
    *((name, kind) for name, kind in store.SAMPLE_FIELDS if name in CELL_KEYS),
    *((name, pa.int64()) for name in ("n", "n_ok", "n_nan", "n_bound", "n_error")),
    ("has_scores", _B), ("fit_on", _S), ("rule_is_generic", _B), ("config_json", _S), ("weights_sha256", _S),
    ("source_weights_sha256", _S), ("versions_json", _S), ("commit", _S), ("status", _S), ("reason", _S),
    *(field for name in CHECKS for field in ((f"check_{name}", _S), (f"stat_{name}", pa.float64()))),
    ("flags", _S),
]  # fmt: skip


def cells_table(samples: pd.DataFrame, cell_infos: Iterable[Info], diagnostics: pd.DataFrame | None = None) -> pa.Table:
    """One row per cell of the run, in the schema of ``cells.parquet``: keys, row counts, record, checks.

    ``samples`` of the whole run (columns ``windtunnel.checks.base.COLUMNS`` and ``eps_255`` suffice); ``cell_infos``
    one entry per cell, those included that failed and left no rows; ``diagnostics`` the measurements that some checks
    read. Raises ValueError for rows of a cell without an entry.
    """
    infos = {str(i["cell_id"]): dict(i) for i in cell_infos}
    evidence = gather(samples, infos.values(), extra=("eps_255",), diagnostics=diagnostics)
    unknown = sorted(set(evidence.by_id) - set(infos))
    if unknown:
        raise ValueError(f"{len(unknown)} cells have rows but no entry in the plan, the first is '{unknown[0]}'")
    findings = run_checks(evidence)
    rows: list[Row] = []
    for cell_id, info in infos.items():
        cell = evidence.by_id.get(cell_id)
        row = {name: info.get(name) for name, _ in CELL_FIELDS}
        row["shift"] = info.get("shift") or NONE
        row |= {"cell_id": cell_id, "n": 0, "n_ok": 0, "n_nan": 0, "n_bound": 0, "n_error": 0}
        if cell is not None:
            row |= dict(cell.key)
            budget = cell.columns["eps_255"]
            row["eps_255"] = int(budget[0]) if np.isfinite(budget[0]) else None
            row["n"] = cell.n
            row |= {f"n_{state}": int((cell.status == state).sum()) for state in store.STATUSES}
        for name, found in findings.items():
            finding = found.get(cell_id)
            row[f"check_{name}"] = finding.state if finding else None
            row[f"stat_{name}"] = finding.statistic if finding else None
        row["flags"] = " ".join(name for name in CHECKS if row[f"check_{name}"] == "flag")
        rows.append(row)
    rows.sort(key=lambda r: tuple(_sortable(r.get(k)) for k in (*ORDER, "attack_seed")))
    return store.table_from_columns(
        {name: [r[name] for r in rows] for name, _ in CELL_FIELDS}, store.schema(CELL_FIELDS)
    )
