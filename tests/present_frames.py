"""Small ``metrics`` and ``cells`` frames in the exact schema, made from synthetic samples by the plainest arithmetic.

What the tests of tables and figures read. Intervals are Wilson's; the real ones come from ``windtunnel.stages``. Every kind
of row in docs/results.md is there once, so that a table that looks for one finds it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from synthetic import KEYS, run

from windtunnel import store

GROUP_KEYS = ["dataset", "split", "role", "shift", "model", "model_seed", "threat", "eps", "attack_defense", "defense"]


def metric_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as ``windtunnel.load(..., 'metrics')`` gives them."""
    wanted = store.schema(store.METRIC_FIELDS)
    columns = {name: [row.get(name) for row in rows] for name in wanted.names}
    return store.table_from_columns(columns, wanted).to_pandas()


def wilson(k: float, n: int) -> tuple[float, float]:
    z = 1.959964
    p, d = k / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z / d * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _key(row: pd.Series) -> dict[str, Any]:
    out = {}
    for name in (*KEYS, "eps"):
        value = row[name]
        if name in store.schema(store.METRIC_FIELDS).names:
            out[name] = None if pd.isna(value) else int(value) if name in ("severity", "model_seed") else value
    return out


def _proportion(key: dict[str, Any], metric: str, correct: np.ndarray, **more: Any) -> dict[str, Any]:
    low, high = wilson(correct.sum(), len(correct))
    return {**key, "metric": metric, "value": float(correct.mean()), "ci_low": low, "ci_high": high, "ci_method": "wilson",
            "n": len(correct), "n_clusters": len(correct), "seeds": 1, "higher_is_better": True, **more}  # fmt: skip


def _group(
    members: list[str], against: str, key: dict[str, Any], correct: np.ndarray, note: str | None
) -> dict[str, Any]:
    out = _proportion(key, "robust_accuracy", correct, against=against, group_id=store.short_id([against, *members]))
    return {**out, "members": members, "note": note}


def metrics_of(samples: pd.DataFrame) -> pd.DataFrame:
    """One row per kind and place, from samples."""
    rows: list[dict[str, Any]] = []
    cells = {str(c): part for c, part in samples.groupby("cell_id", sort=True)}
    for cell_id, part in cells.items():
        key = _key(part.iloc[0])
        if part["correct"].notna().all():
            rows.append(_proportion(key, "accuracy", part["correct"].to_numpy(bool), cell_id=cell_id))
            gap = abs(part["conf"].mean() - part["correct"].astype(float).mean())
            rows.append({**key, "cell_id": cell_id, "metric": "ece15", "value": gap, "ci_low": gap / 2, "ci_high": gap * 2,
                         "n": len(part)})  # fmt: skip
        for name in ("psnr", "bpp_payload"):
            if part[name].notna().all() and key["attack"] == "none":
                value = float(part[name].mean())
                rows.append({**key, "cell_id": cell_id, "metric": name, "value": value, "ci_low": value - 0.1,
                             "ci_high": value + 0.1, "n": len(part)})  # fmt: skip
    rows += _robust(cells) + _ood(cells, [c for c in samples.columns if c.startswith("score_")]) + _paired(cells)
    return metric_frame(rows)


def _robust(cells: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows, found = [], {}
    for cell_id, part in cells.items():
        k = _key(part.iloc[0])
        own = k["model"] if k["model_seed"] == 0 else f"{k['model']}-s{k['model_seed']}"
        if k["attack"] == "none" or k["role"] != "id" or k["iterate"] == "last" or k["source_model"] != own:
            continue
        against = "bare" if k["defense"] == "none" else "unaware" if k["attack_defense"] == "none" else "through"
        found.setdefault((against, *(k[g] for g in GROUP_KEYS)), []).append(cell_id)
    for (against, *values), members in found.items():
        key = {**dict(zip(GROUP_KEYS, values, strict=True)), "mode": None}
        size = min(len(cells[m]) for m in members)
        worst = np.logical_and.reduce([cells[m]["correct"].to_numpy(bool)[:size] for m in members])
        lowest = min(members, key=lambda m: cells[m]["correct"].mean())
        first = cells[lowest].iloc[0]
        note = first["through"] if against == "through" else first["attack"]
        rows.append(_group(members, against, key, worst, note))
    return rows


def _ood(cells: dict[str, pd.DataFrame], columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    clean = {}
    for cell_id, part in cells.items():
        k = _key(part.iloc[0])
        if k["attack"] == "none":
            clean[(k["model"], k["model_seed"], k["defense"], k["split"], k["shift"], k["severity"])] = (
                cell_id,
                part,
                k,
            )
    for (model, seed, defense, _split, shift, _severity), (cell_id, part, k) in clean.items():
        reference = clean.get((model, seed, defense, "test", "none", None))
        if k["role"] == "id" or shift != "none" or reference is None:
            continue
        for column in columns:
            inside, outside = reference[1][column].to_numpy(float), part[column].to_numpy(float)
            if np.isnan(inside).any() or np.isnan(outside).any():
                continue
            y, s = np.repeat([0, 1], [len(inside), len(outside)]), np.concatenate([inside, outside])
            score = column.removeprefix("score_").replace("_", "-")
            values = {"auroc": roc_auc_score(y, s), "fpr95_id_positive": float(np.mean(outside <= np.sort(inside)[int(0.95 * len(inside))])),
                      "fpr95_ood_positive": float(np.mean(inside >= np.sort(outside)[int(0.05 * len(outside))]))}  # fmt: skip
            for metric, value in values.items():
                rows.append({**k, "cell_id": cell_id, "reference_cell_id": reference[0], "score": score, "metric": metric,
                             "value": value, "ci_low": value - 0.02, "ci_high": value + 0.02, "n_id": len(inside),
                             "n_ood": len(outside), "seeds": 1, "higher_is_better": metric == "auroc"})  # fmt: skip
    frame = pd.DataFrame([r for r in rows if r["role"] in ("near_ood", "far_ood")])
    means = []
    if len(frame):
        for (dataset, role, model, seed, defense, score, metric), part in frame.groupby(
            ["dataset", "role", "model", "model_seed", "defense", "score", "metric"]
        ):
            value = float(part["value"].mean())
            means.append({"dataset": dataset, "split": role, "role": role, "shift": "none", "model": model, "model_seed": int(seed),
                          "attack": "none", "defense": defense, "score": score, "metric": metric, "against": "mean of sets",
                          "value": value, "ci_low": value - 0.01, "ci_high": value + 0.01, "n_id": 60, "n_ood": 180, "seeds": 1,
                          "group_id": store.short_id([role, model, int(seed), defense, score, metric]),
                          "members": sorted(part["cell_id"])})  # fmt: skip
    rows += means
    return rows + _over_seeds(means + [r for r in rows if r.get("cell_id") and r["defense"] == "none"])


def _over_seeds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = tuple(row.get(k) for k in ("dataset", "split", "role", "model", "defense", "score", "metric", "against"))
        groups.setdefault(key, []).append(row)
    out = []
    for key, part in groups.items():
        if len(part) < 2:
            continue
        values = [r["value"] for r in sorted(part, key=lambda r: r["model_seed"])]
        mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
        out.append({**part[0], "cell_id": None, "reference_cell_id": None, "model_seed": None, "value": mean, "seed_sd": sd,
                    "ci_low": mean - 2 * sd, "ci_high": mean + 2 * sd, "seeds": len(values), "ci_method": "t over seeds",
                    "group_id": store.short_id(["seeds", *[str(k) for k in key]])})  # fmt: skip
    score = {(r["model"], r["split"], r["score"], r["metric"]): r for r in out if r.get("against") == "mean of sets"}
    for (model, split, name, metric), row in list(score.items()):
        for other_model, other in (("digits-abet", "energy"), ("digits-cnn", "energy"), ("digits-cnn", "msp")):
            that = score.get((other_model, split, other, metric))
            if (
                name == "abet"
                and model == "digits-abet"
                and that
                and metric != "fpr95_ood_positive"
                and row["defense"] == "none"
            ):
                value = row["value"] - that["value"]
                out.append({**row, "metric": f"{metric}_difference", "against": f"{other_model}:{other}", "value": value,
                            "ci_low": value - 0.03, "ci_high": value + 0.03, "seed_sd": 0.01,
                            "group_id": store.short_id(["pair", model, split, other_model, other, metric])})  # fmt: skip
    return out


def _paired(cells: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows = []
    index = {}
    for cell_id, part in cells.items():
        k = _key(part.iloc[0])
        if k["role"] == "id" and k["attack_defense"] == "none":
            index[tuple(k[n] for n in ("model", "model_seed", "attack", "threat", "mode", "iterate", "source_model", "defense"))] = (
                cell_id, part, k)  # fmt: skip
    for key, (cell_id, part, k) in index.items():
        base = index.get((*key[:-1], "none"))
        if key[-1] == "none" or base is None or base[0] == cell_id:
            continue
        value = float(part["correct"].astype(float).mean() - base[1]["correct"].astype(float).mean())
        rows.append({**k, "cell_id": cell_id, "baseline_cell_id": base[0], "metric": "accuracy_difference", "value": value,
                     "ci_low": value - 0.05, "ci_high": value + 0.05, "p_value": 0.001, "p_adjusted": 0.004,
                     "n": len(part)})  # fmt: skip
    return rows


def cells_of(samples: pd.DataFrame, flags: dict[str, tuple[str, ...]] | None = None) -> pd.DataFrame:
    """One row per cell with the key columns, counts and the flags given per cell id."""
    rows = []
    names = sorted({n for raised in (flags or {}).values() for n in raised} | {"single_step"})
    for cell_id, part in samples.groupby("cell_id", sort=True):
        raised = (flags or {}).get(str(cell_id), ())
        row = {"cell_id": cell_id, **{name: part.iloc[0][name] for name in KEYS}, "n": len(part)}
        for status in ("ok", "nan", "bound", "error"):
            row[f"n_{status}"] = int((part["status"] == status).sum())
        row |= {"status": "ok", "reason": None, "flags": " ".join(raised)}
        row |= {f"check_{n}": "flag" if n in raised else "ok" for n in names}
        row |= {f"stat_{n}": 0.5 if n in raised else 0.0 for n in names}
        rows.append(row)
    return pd.DataFrame(rows)


def masked(samples: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """Flags as a run would raise them: the surrogate through all rounds, from three rounds on."""
    out = {}
    for cell_id, part in samples.groupby("cell_id", sort=True):
        first = part.iloc[0]
        if first["through"] == "surrogate-n" and first["defense"] in ("jpeg-50-x3", "jpeg-50-x5", "jpeg-50-x10"):
            out[str(cell_id)] = ("more_rounds", "through_weaker")
    return out


@cache
def whole_run() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """samples, metrics, cells of the synthetic run. Shared: do not change them."""
    samples = run()
    return samples, metrics_of(samples), cells_of(samples, masked(samples))
