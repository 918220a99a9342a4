"""Detection metrics of out-of-distribution scores (higher = more OOD), exact on ties, with intervals over sources.

- ``auroc``: P(score of an OOD image > score of an ID image) + P(equal) / 2, from ranks.
- ``fpr95_id_positive``: tau is the order statistic ceil(.95 n) of the ID scores, an image is accepted as ID if its
  score is <= tau; the share of OOD images accepted (AbeT's classification tables, ODIN, OpenOOD before August 2023).
- ``fpr95_ood_positive``: tau is the order statistic ceil(.95 n) of the OOD scores counted from above, an image is
  flagged if its score is >= tau; the share of ID images flagged (OpenOOD since August 2023, pytorch-ood).
- ``aupr_*_trapezoid`` (OpenOOD, pytorch-ood) and ``ap_*`` (scikit-learn's average precision); ``in``: ID is positive,
  ranked by the negated score; ``out``: OOD is positive. Both depend on the ratio of ID to OOD images.

There is no interpolated quantile, and ties are all accepted. The bootstrap uses the same integer arithmetic as the
point estimate, which is its case of all weights 1. A metric over any NaN is None. Pure functions, no torch, no I/O.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from windtunnel.metrics.intervals import percentile_interval, pooled_weights, source_codes

RESAMPLED = ("auroc", "fpr95_id_positive", "fpr95_ood_positive")
POINT_ONLY = ("aupr_in_trapezoid", "aupr_out_trapezoid", "ap_in", "ap_out")
HIGHER_IS_BETTER = {
    "auroc": True,
    "fpr95_id_positive": False,
    "fpr95_ood_positive": False,
    "aupr_in_trapezoid": True,
    "aupr_out_trapezoid": True,
    "ap_in": True,
    "ap_out": True,
}
NUMBERS_AT_ONCE = 8_000_000
Sources = Sequence[Hashable] | np.ndarray


class _Ranked:
    """Scores in ascending order with their weights [n, B] and the weight below each place [n + 1, B]; integers."""

    def __init__(self, scores: np.ndarray, weights: np.ndarray) -> None:
        order = np.argsort(scores, kind="stable")
        self.scores = scores[order]
        self.weights = weights.T[order]
        kind = np.int32 if len(scores) * int(weights.max(initial=1)) < 2**31 else np.int64
        self.below = np.zeros((len(scores) + 1, weights.shape[0]), dtype=kind)
        np.cumsum(self.weights, axis=0, dtype=kind, out=self.below[1:])
        self.total = self.below[-1].astype(np.int64)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole as float64, NaN where nothing was drawn."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _auroc(inside: _Ranked, outside: _Ranked) -> np.ndarray:
    lower = np.searchsorted(inside.scores, outside.scores, side="left")
    upper = np.searchsorted(inside.scores, outside.scores, side="right")
    twice = inside.below[lower] + inside.below[upper]
    largest = 2 * int(inside.total.max(initial=0)) * int(outside.weights.max(initial=0))
    if largest >= 2**31:
        twice = twice.astype(np.int64)
    wins = (twice * outside.weights).sum(axis=0, dtype=np.int64)
    return _share(wins.astype(np.float64), 2.0 * inside.total * outside.total)


def _fpr_id_positive(inside: _Ranked, outside: _Ranked, percent: int) -> np.ndarray:
    needed = -(-percent * inside.total // 100)  # in integers: .95 * n in floats is above 95 n / 100 for some n
    place = np.minimum((inside.below[1:] < needed).sum(axis=0), len(inside.scores) - 1)
    accepted = np.searchsorted(outside.scores, inside.scores, side="right")[place]
    share = _share(outside.below[accepted, np.arange(len(place))], outside.total)
    return np.where(inside.total > 0, share, np.nan)


def _fpr_ood_positive(inside: _Ranked, outside: _Ranked, percent: int) -> np.ndarray:
    spared = outside.total + (-percent * outside.total // 100)
    place = np.minimum((outside.below[1:] <= spared).sum(axis=0), len(outside.scores) - 1)
    passed = np.searchsorted(inside.scores, outside.scores, side="left")[place]
    share = _share(inside.total - inside.below[passed, np.arange(len(place))], inside.total)
    return np.where(outside.total > 0, share, np.nan)


def _checked(scores: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1:
        raise ValueError(f"scores must be one number per image, not of shape {s.shape}")
    if weights is None:
        return s, np.ones((1, len(s)), dtype=np.uint16)
    w = np.asarray(weights)
    if w.ndim != 2 or w.shape[1] != len(s):
        raise ValueError(f"weights of shape {w.shape} do not fit {len(s)} scores")
    if not np.issubdtype(w.dtype, np.integer):
        if (w != np.floor(w)).any() or w.min(initial=0) < 0:
            raise ValueError("weights must be counts")
        w = w.astype(np.int64)
    return s, w


def _blocks(replicates: int, rows: int) -> list[slice]:
    step = max(1, NUMBERS_AT_ONCE // max(1, rows))
    return [slice(start, start + step) for start in range(0, replicates, step)]


def _weighted(
    metrics: Sequence[str],
    id_scores: np.ndarray,
    ood_by_set: Mapping[str, np.ndarray],
    w_id: np.ndarray | None,
    w_ood: Mapping[str, np.ndarray | None],
    percent: int = 95,
) -> dict[tuple[str, str], np.ndarray]:
    """{(set, metric): [B]}; the ID scores are sorted and summed once for all sets. NaN scores give NaN."""
    s, w = _checked(id_scores, w_id)
    others = {key: _checked(values, w_ood[key]) for key, values in ood_by_set.items()}
    out = {(key, metric): np.full(len(w), np.nan) for key in others for metric in metrics}
    if np.isnan(s).any() or not len(s):
        return out
    for block in _blocks(len(w), len(s) + max((len(o) for o, _ in others.values()), default=0)):
        inside = _Ranked(s, w[block])
        for key, (o, v) in others.items():
            if len(v) != len(w):
                raise ValueError(f"{len(w)} replicates of ID weights but {len(v)} of '{key}'")
            if np.isnan(o).any() or not len(o):
                continue
            outside = _Ranked(o, v[block])
            if "auroc" in metrics:
                out[key, "auroc"][block] = _auroc(inside, outside)
            if "fpr95_id_positive" in metrics:
                out[key, "fpr95_id_positive"][block] = _fpr_id_positive(inside, outside, percent)
            if "fpr95_ood_positive" in metrics:
                out[key, "fpr95_ood_positive"][block] = _fpr_ood_positive(inside, outside, percent)
    return out


def auroc_weighted(id_scores: np.ndarray, ood_scores: np.ndarray, w_id: np.ndarray, w_ood: np.ndarray) -> np.ndarray:
    """[B] AUROC under count weights ``w_id`` [B, n] and ``w_ood`` [B, m]; NaN where a side has no weight or a NaN."""
    return _weighted(["auroc"], id_scores, {"": ood_scores}, w_id, {"": w_ood})["", "auroc"]


def fpr95_id_positive_weighted(
    id_scores: np.ndarray, ood_scores: np.ndarray, w_id: np.ndarray, w_ood: np.ndarray, *, percent: int = 95
) -> np.ndarray:
    """[B] ``fpr95_id_positive`` under count weights."""
    name = "fpr95_id_positive"
    return _weighted([name], id_scores, {"": ood_scores}, w_id, {"": w_ood}, percent)["", name]


def fpr95_ood_positive_weighted(
    id_scores: np.ndarray, ood_scores: np.ndarray, w_id: np.ndarray, w_ood: np.ndarray, *, percent: int = 95
) -> np.ndarray:
    """[B] ``fpr95_ood_positive`` under count weights."""
    name = "fpr95_ood_positive"
    return _weighted([name], id_scores, {"": ood_scores}, w_id, {"": w_ood}, percent)["", name]


def _point(metric: str, id_scores: np.ndarray, ood_scores: np.ndarray, percent: int = 95) -> float | None:
    value = _weighted([metric], id_scores, {"": ood_scores}, None, {"": None}, percent)["", metric][0]
    return None if np.isnan(value) else float(value)


def auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> float | None:
    """Area under the ROC curve, ties counted half; None over any NaN or an empty side."""
    return _point("auroc", id_scores, ood_scores)


def fpr95_id_positive(id_scores: np.ndarray, ood_scores: np.ndarray, *, percent: int = 95) -> float | None:
    """Share of OOD images accepted where at least ``percent`` of 100 ID images are."""
    return _point("fpr95_id_positive", id_scores, ood_scores, percent)


def fpr95_ood_positive(id_scores: np.ndarray, ood_scores: np.ndarray, *, percent: int = 95) -> float | None:
    """Share of ID images flagged where at least ``percent`` of 100 OOD images are."""
    return _point("fpr95_ood_positive", id_scores, ood_scores, percent)


def id_threshold(id_scores: np.ndarray, *, percent: int = 95) -> float | None:
    """tau of ``fpr95_id_positive``: the smallest ID score with at least ``percent`` of 100 ID images at or below it."""
    s = np.sort(np.asarray(id_scores, dtype=np.float64))
    return None if not len(s) or np.isnan(s).any() else float(s[-(-percent * len(s) // 100) - 1])


def ood_threshold(ood_scores: np.ndarray, *, percent: int = 95) -> float | None:
    """tau of ``fpr95_ood_positive``: the largest OOD score with ``percent`` of 100 OOD images at or above it."""
    s = np.sort(np.asarray(ood_scores, dtype=np.float64))
    return None if not len(s) or np.isnan(s).any() else float(s[len(s) + (-percent * len(s) // 100)])


def roc_curve(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """``(share of ID flagged, share of OOD flagged)`` for every threshold from above, from (0, 0) to (1, 1)."""
    s, o = np.asarray(id_scores, dtype=np.float64), np.asarray(ood_scores, dtype=np.float64)
    if not len(s) or not len(o) or np.isnan(s).any() or np.isnan(o).any():
        return None
    counts = _counts_from_above(o, s)
    zero = np.zeros(1)
    return np.concatenate([zero, counts[1] / len(s)]), np.concatenate([zero, counts[0] / len(o)])


def _counts_from_above(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of each lie at or above each distinct value, values descending."""
    values = np.unique(np.concatenate([positive, negative]))[::-1]
    up, un = np.sort(positive), np.sort(negative)
    return len(up) - np.searchsorted(up, values, "left"), len(un) - np.searchsorted(un, values, "left")


def _precision_recall(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    p, q = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not len(p) or not len(q) or np.isnan(p).any() or np.isnan(q).any():
        return None
    hits, alarms = _counts_from_above(p, q)
    return hits / (hits + alarms), hits / len(p)


def _area(positive: np.ndarray, negative: np.ndarray, trapezoid: bool) -> float | None:
    curve = _precision_recall(positive, negative)
    if curve is None:
        return None
    precision, recall = np.concatenate([[1.0], curve[0]]), np.concatenate([[0.0], curve[1]])
    height = (precision[1:] + precision[:-1]) / 2 if trapezoid else precision[1:]
    return float((np.diff(recall) * height).sum())


def aupr_in_trapezoid(id_scores: np.ndarray, ood_scores: np.ndarray) -> float | None:
    """Area under precision-recall with ID positive, trapezoids from (recall 0, precision 1)."""
    return _area(-np.asarray(id_scores), -np.asarray(ood_scores), trapezoid=True)


def aupr_out_trapezoid(id_scores: np.ndarray, ood_scores: np.ndarray) -> float | None:
    """Area under precision-recall with OOD positive, trapezoids from (recall 0, precision 1)."""
    return _area(ood_scores, id_scores, trapezoid=True)


def ap_in(id_scores: np.ndarray, ood_scores: np.ndarray) -> float | None:
    """Average precision (steps, no interpolation) with ID positive."""
    return _area(-np.asarray(id_scores), -np.asarray(ood_scores), trapezoid=False)


def ap_out(id_scores: np.ndarray, ood_scores: np.ndarray) -> float | None:
    """Average precision (steps, no interpolation) with OOD positive."""
    return _area(ood_scores, id_scores, trapezoid=False)


def ties(scores: np.ndarray) -> tuple[int, float | None]:
    """``(number of distinct values, share of images whose value another image has too)``; NaN rows left out of both."""
    s = np.asarray(scores, dtype=np.float64)
    s = s[~np.isnan(s)]
    if not len(s):
        return 0, None
    _, counts = np.unique(s, return_counts=True)
    return len(counts), float(counts[counts > 1].sum() / len(s))


def detection_replicates(
    id_scores: np.ndarray,
    ood_scores_by_set: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    *,
    means: Mapping[str, Sequence[str]] | None = None,
) -> dict[tuple[str, str], np.ndarray]:
    """{(set or mean, metric): [B]} for the resampled metrics; ``weights`` as ``detection_weights`` gives them.

    All sets use the one resample of the ID images in each replicate, and so does their mean.
    """
    found = _weighted(RESAMPLED, id_scores, ood_scores_by_set, weights[""], weights)
    for name, members in (means or {}).items():
        for metric in RESAMPLED:
            found[name, metric] = np.mean([found[m, metric] for m in members], axis=0)
    return found


def detection_weights(
    id_sources: Sources, ood_sources_by_set: Mapping[str, Sources], replicates: int, seed: int
) -> dict[str, np.ndarray]:
    """Weights [B, n] of the ID images (key "") and of each OOD set; sets that share sources are resampled together.

    They depend on the sources alone: make them once and use them for every score, model and defense on these images.
    """
    if "" in ood_sources_by_set:
        raise ValueError("an OOD set needs a name")
    return pooled_weights({"": id_sources, **ood_sources_by_set}, replicates, seed)


def detection_with_intervals(
    id_scores: np.ndarray,
    ood_scores_by_set: Mapping[str, np.ndarray],
    id_sources: Sources,
    ood_sources_by_set: Mapping[str, Sources],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    means: Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """One row per (set or mean) and metric: ``against, members, metric, value, ci_low, ci_high, ci_method, n_id, n_ood,
    n_clusters, n_nan_id, n_nan_ood, n_distinct, tie_share, higher_is_better``.

    ``means`` names unweighted means over sets (near, far). ``weights`` (from ``detection_weights``) saves drawing
    them again. Intervals are percentile bootstraps over sources, for AUROC and both FPRs; the areas under
    precision-recall have none, and no mean over sets of different size, where it would mix base rates. ``n_clusters``
    counts the distinct sources of ID and OOD together. A NaN score makes every metric it enters null; ``n_nan_*`` say
    how many there were.
    """
    means = dict(means or {})
    _check_means(means, ood_scores_by_set)
    if weights is None:
        weights = detection_weights(id_sources, ood_sources_by_set, replicates, seed)
    names_of = {key: source_codes(ids)[0] for key, ids in {"": id_sources, **ood_sources_by_set}.items()}
    ones = _weighted(RESAMPLED, id_scores, ood_scores_by_set, None, dict.fromkeys(ood_scores_by_set))
    drawn = detection_replicates(id_scores, ood_scores_by_set, weights, means=means)
    areas = {
        (key, metric): globals()[metric](id_scores, values)
        for key, values in ood_scores_by_set.items()
        for metric in POINT_ONLY
    }
    rows = []
    for against, members in {**{key: (key,) for key in ood_scores_by_set}, **means}.items():
        pooled = np.concatenate([np.asarray(ood_scores_by_set[m], dtype=np.float64) for m in members])
        everything = np.concatenate([np.asarray(id_scores, dtype=np.float64), pooled])
        distinct, share = ties(everything)
        shared = {
            "against": against,
            "members": list(members),
            "n_id": len(id_scores),
            "n_ood": len(pooled),
            "n_clusters": len(np.unique(np.concatenate([names_of[key] for key in ("", *members)]))),
            "n_nan_id": int(np.isnan(np.asarray(id_scores, dtype=np.float64)).sum()),
            "n_nan_ood": int(np.isnan(pooled).sum()),
            "n_distinct": distinct,
            "tie_share": share,
        }
        equal_sizes = len({len(ood_scores_by_set[m]) for m in members}) == 1
        for metric in (*RESAMPLED, *POINT_ONLY):
            low: float | None = None
            high: float | None = None
            if metric in RESAMPLED:
                parts = [float(ones[m, metric][0]) for m in members]
                low, high = percentile_interval(drawn[against, metric], level)
            else:
                parts = [areas[m, metric] if equal_sizes else None for m in members]
            known = all(p is not None and not np.isnan(p) for p in parts)
            rows.append(
                shared
                | {
                    "metric": metric,
                    "value": float(np.mean(parts)) if known else None,
                    "ci_low": low,
                    "ci_high": high,
                    "ci_method": None if low is None else "cluster_bootstrap",
                    "higher_is_better": HIGHER_IS_BETTER[metric],
                }
            )
    return rows


def detection_difference(
    first: tuple[np.ndarray, Mapping[str, np.ndarray]],
    second: tuple[np.ndarray, Mapping[str, np.ndarray]],
    id_sources: Sources,
    ood_sources_by_set: Mapping[str, Sources],
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    means: Mapping[str, Sequence[str]] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """First minus second (two scores, models or defenses, each ``(id_scores, ood_scores_by_set)``) on the same images.

    The same resamples serve both, so the interval is a paired one. Rows: ``against, metric, value, ci_low, ci_high,
    ci_method, p_value`` (two-sided, from the bootstrap: ``2 (1 + min(#{<= 0}, #{>= 0})) / (B + 1)``, at most 1),
    ``n_id, n_ood``.
    """
    means = dict(means or {})
    _check_means(means, first[1])
    if weights is None:
        weights = detection_weights(id_sources, ood_sources_by_set, replicates, seed)
    none = {key: np.ones((1, len(values)), dtype=np.uint16) for key, values in first[1].items()}
    none[""] = np.ones((1, len(first[0])), dtype=np.uint16)
    value = [detection_replicates(*side, none, means=means) for side in (first, second)]
    drawn = [detection_replicates(*side, weights, means=means) for side in (first, second)]
    rows = []
    for key, replicate in drawn[0].items():
        against, metric = key
        gap = replicate - drawn[1][key]
        point = float(value[0][key][0] - value[1][key][0])
        low, high = percentile_interval(gap, level)
        defined = not np.isnan(point)
        p = None
        if low is not None:
            p = min(1.0, 2 * (1 + min(int((gap <= 0).sum()), int((gap >= 0).sum()))) / (len(gap) + 1))
        rows.append(
            {
                "against": against,
                "metric": metric,
                "value": point if defined else None,
                "ci_low": low,
                "ci_high": high,
                "ci_method": None if low is None else "paired_cluster_bootstrap",
                "p_value": p,
                "n_id": len(first[0]),
                "n_ood": sum(len(first[1][m]) for m in means.get(against, (against,))),
            }
        )
    return rows


def _check_means(means: Mapping[str, Sequence[str]], sets: Mapping[str, np.ndarray]) -> None:
    for name, members in means.items():
        unknown = [m for m in members if m not in sets]
        if unknown or not members or name in sets:
            raise ValueError(f"the mean '{name}' over {list(members)} does not fit the sets {sorted(sets)}")
