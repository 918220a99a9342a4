"""Accuracy, robust accuracy and calibration of a classifier, with intervals over whole sources.

- Accuracy counts every row: one without an outcome (an error, NaN logits) is wrong, and ``n_nan`` says how many there
  were.
- Robust accuracy: a sample counts if it is correct under *every* candidate (itself, unaware, noise, each attack's
  best).
- Calibration: expected calibration error over bins of the top confidence, its debiased form, and the value a
  perfectly calibrated model would show with this many samples: ECE of 500 perfect samples is about .016, not 0, so
  that a bare ECE says little.

Pure functions, no torch, no I/O; absent is ``None``; fractions, never percent.

References: On Calibration of Modern Neural Networks (Guo et al., ICML 2017), https://arxiv.org/abs/1706.04599;
Verified Uncertainty Calibration (Kumar et al., NeurIPS 2019), https://arxiv.org/abs/1909.10155 (debiased estimate);
Verification of forecasts expressed in terms of probability (Brier, 1950).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import logsumexp

from windtunnel.metrics.intervals import Estimate, clopper_pearson, mean_estimate, wilson

Sources = Sequence[Hashable] | np.ndarray | None


# ---- accuracy


def accuracy(
    correct: np.ndarray, source_ids: Sources = None, *, level: float = 0.95, replicates: int = 1000, seed: int = 0
) -> Estimate:
    """Mean of ``correct`` [n]: 0/1, or p(correct) of a random defense; NaN counts as wrong, counted in ``n_nan``.

    Intervals and their names as ``mean_estimate`` gives them.
    """
    values = np.asarray(correct, dtype=np.float64)
    missing = np.isnan(values)
    found = mean_estimate(np.where(missing, 0.0, values), source_ids, level=level, replicates=replicates, seed=seed)
    return _with_missing(found, int(missing.sum()))


def _with_missing(estimate: Estimate, missing: int) -> Estimate:
    return Estimate(**{**estimate.__dict__, "n_nan": missing})


@dataclass(frozen=True, kw_only=True)
class RobustAccuracy:
    """Robust accuracy and what attack errors could hide.

    ``estimate`` counts a sample with an error or NaN as broken; its value and interval are null if more than 1 % of
    the samples had one (``reason`` says so). ``bound_low`` and ``bound_high`` count those samples broken and robust.
    """

    estimate: Estimate
    bound_low: float | None
    bound_high: float | None
    n_errors: int
    reason: str | None


def robust_accuracy(
    correct: np.ndarray,
    source_ids: Sources = None,
    *,
    errors: np.ndarray | None = None,
    tolerated: float = 0.01,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> RobustAccuracy:
    """Share of samples correct under every candidate. ``correct`` [n, C] 0/1 or bool, NaN where there is no outcome.

    NaN *logits* are an outcome, a wrong one: give them as 0. ``errors`` [n, C] bool marks candidates whose attack
    failed and left nothing honest to judge; NaN in ``correct`` is the same. A sample that another candidate has
    already broken is broken whatever the error hid: it is no open question.
    """
    c = np.asarray(correct, dtype=np.float64)
    if c.ndim != 2:
        raise ValueError(f"correct must be [samples, candidates], not of shape {c.shape}")
    if c.shape[1] == 0:
        raise ValueError("robust accuracy needs at least one candidate, the image itself")
    failed = np.isnan(c) if errors is None else np.isnan(c) | np.asarray(errors, dtype=bool)
    broken = ((c == 0) & ~failed).any(axis=1)
    with_error = failed.any(axis=1)
    robust = ~broken & ~with_error
    found = _with_missing(
        mean_estimate(robust.astype(np.float64), source_ids, level=level, replicates=replicates, seed=seed),
        int(with_error.sum()),
    )
    low = float(robust.mean()) if len(c) else None
    high = float((~broken).mean()) if len(c) else None
    reason = None
    if len(c) and with_error.mean() > tolerated:
        reason = f"{int(with_error.sum())} of {len(c)} samples had an error: between {low:.4f} and {high:.4f}"
        found = Estimate(value=None, n=found.n, n_clusters=found.n_clusters, n_nan=found.n_nan)
    return RobustAccuracy(estimate=found, bound_low=low, bound_high=high, n_errors=int(with_error.sum()), reason=reason)


@dataclass(frozen=True, kw_only=True)
class WorstClass:
    """The class with the lowest accuracy (the smallest label among equals), its accuracy and its number of samples."""

    estimate: Estimate
    label: int | None


def worst_class_accuracy(correct: np.ndarray, labels: np.ndarray, *, level: float = 0.95) -> WorstClass:
    """Lowest accuracy over the classes that occur; NaN counts as wrong.

    The minimum of K estimates is biased downwards, so the interval is that of the *minimum*: from the lowest to the
    lowest of the K Clopper-Pearson ends at level ``1 - (1 - level) / K`` (Bonferroni, so that it holds; Wilson's ends
    covered 90 % in a simulation of ten equal classes of 50). It presumes independent samples.
    """
    values = np.asarray(correct, dtype=np.float64)
    missing = np.isnan(values)
    values = np.where(missing, 0.0, values)
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    if len(codes) != len(values):
        raise ValueError(f"{len(values)} outcomes but {len(codes)} labels")
    if not len(classes):
        return WorstClass(estimate=Estimate(value=None), label=None)
    counts = np.bincount(codes)
    hits = np.bincount(codes, weights=values)
    means = hits / counts
    worst = int(np.argmin(means))
    each = 1 - (1 - level) / len(classes)
    ends = [clopper_pearson(h, k, each) for h, k in zip(hits.tolist(), counts.tolist(), strict=True)]
    estimate = Estimate(
        value=float(means[worst]),
        ci_low=min(e[0] for e in ends),
        ci_high=min(e[1] for e in ends),
        ci_method="clopper_pearson_bonferroni_over_classes",
        n=int(counts[worst]),
        n_clusters=int(counts[worst]),
        n_nan=int(missing.sum()),
    )
    return WorstClass(estimate=estimate, label=int(classes[worst]))


# ---- calibration


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """One bin (low, high] of the confidence; what has no samples is null. The interval is Wilson's, of the accuracy."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None
    ci_low: float | None
    ci_high: float | None


def _paired(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Both as float64, or None if there is nothing to average or a NaN in it."""
    p, y = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if p.shape != y.shape or p.ndim != 1:
        raise ValueError(f"confidence {p.shape} and correct {y.shape} must be one number per sample")
    if not len(p) or np.isnan(p).any() or np.isnan(y).any():
        return None
    if p.min() < 0 or p.max() > 1:
        raise ValueError("confidences must lie in [0, 1]")
    return p, y


def _equal_width(p: np.ndarray, bins: int) -> np.ndarray:
    """Bin of each confidence: (k / bins, (k + 1) / bins], and 0 in the first."""
    return np.searchsorted(np.arange(1, bins) / bins, p, side="left")


def _equal_mass(p: np.ndarray, bins: int) -> np.ndarray:
    """Bin by rank, sizes differing by at most one before equal confidences are put together."""
    ordered = np.sort(p)
    rank = np.searchsorted(ordered, p, side="left")
    return rank * bins // len(p)


def _gaps(p: np.ndarray, y: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the filled bins: share of the samples, mean confidence minus accuracy, accuracy."""
    counts = np.bincount(codes)
    filled = counts > 0
    n = counts[filled]
    mean_y = np.bincount(codes, weights=y)[filled] / n
    return n / len(p), np.bincount(codes, weights=p)[filled] / n - mean_y, mean_y


def ece(confidence: np.ndarray, correct: np.ndarray, *, bins: int = 15, equal_mass: bool = False) -> float | None:
    """Expected calibration error ``sum_b n_b / n |mean confidence - accuracy|``; ``bins`` 15 of equal width, as Guo
    et al.

    ``equal_mass`` takes bins of equal numbers of samples instead. Biased upwards: see ``ece_debiased`` and
    ``ece_null``.
    """
    pair = _paired(confidence, correct)
    if pair is None:
        return None
    codes = (_equal_mass if equal_mass else _equal_width)(pair[0], bins)
    share, gap, _ = _gaps(*pair, codes)
    return float((share * np.abs(gap)).sum())


def ece_debiased(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int = 15, equal_mass: bool = False
) -> float | None:
    """ECE minus its bias as estimated by Kumar et al.: each bin's accuracy redrawn from a normal of its own variance.

    ``2 ECE - sum_b n_b / n E|N(gap_b, a_b (1 - a_b) / n_b)|``, the expectation in closed form (folded normal) instead
    of by simulation. It may fall below 0, which says "no miscalibration seen"; it is not clipped, for that would bias
    it again.
    """
    pair = _paired(confidence, correct)
    if pair is None:
        return None
    codes = (_equal_mass if equal_mass else _equal_width)(pair[0], bins)
    share, gap, hit = _gaps(*pair, codes)
    expected = _folded_normal_mean(gap, np.sqrt(hit * (1 - hit) / (share * len(pair[0]))))
    return float((share * (2 * np.abs(gap) - expected)).sum())


def ece_null(confidence: np.ndarray, *, bins: int = 15, equal_mass: bool = False) -> float | None:
    """ECE that a perfectly calibrated model would show on average with these confidences (normal per bin)."""
    pair = _paired(confidence, np.zeros(len(np.asarray(confidence))))
    if pair is None:
        return None
    p = pair[0]
    codes = (_equal_mass if equal_mass else _equal_width)(p, bins)
    counts = np.bincount(codes)
    spread = np.sqrt(np.bincount(codes, weights=p * (1 - p)))
    return float(np.sqrt(2 / np.pi) * spread[counts > 0].sum() / len(p))


def _folded_normal_mean(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """E|N(mean, sd^2)|, |mean| where sd is 0."""
    safe = np.where(sd > 0, sd, 1.0)
    ratio = mean / safe
    folded = safe * np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) + mean * (1 - 2 * stats.norm.cdf(-ratio))
    return np.where(sd > 0, folded, np.abs(mean))


def reliability_bins(
    confidence: np.ndarray, correct: np.ndarray, *, bins: int = 15, level: float = 0.95
) -> list[ReliabilityBin] | None:
    """All ``bins`` equal-width bins, the empty ones too, for the reliability figure. None over any NaN."""
    pair = _paired(confidence, correct)
    if pair is None:
        return None
    p, y = pair
    codes = _equal_width(p, bins)
    out = []
    for k in range(bins):
        mine = codes == k
        n = int(mine.sum())
        hits = float(y[mine].sum())
        low, high = wilson(hits, n, level)
        out.append(
            ReliabilityBin(
                low=k / bins,
                high=(k + 1) / bins,
                n=n,
                confidence=float(p[mine].mean()) if n else None,
                accuracy=hits / n if n else None,
                ci_low=low,
                ci_high=high,
            )
        )
    return out


def brier_top(confidence: np.ndarray, correct: np.ndarray) -> float | None:
    """Mean squared difference of the top confidence and 0/1 correctness; in [0, 1], lower is better."""
    pair = _paired(confidence, correct)
    return None if pair is None else float(((pair[0] - pair[1]) ** 2).mean())


def _log_softmax(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if z.ndim != 2 or y.shape != (len(z),):
        raise ValueError(f"logits {z.shape} and labels {y.shape} do not fit")
    if not len(z) or np.isnan(z).any():
        return None
    if y.min() < 0 or y.max() >= z.shape[1]:
        raise ValueError(f"labels must lie between 0 and {z.shape[1] - 1}")
    return z - logsumexp(z, axis=1, keepdims=True), y


def brier(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Brier's score over all classes, ``mean_i sum_k (p_ik - [y_i = k])^2``; in [0, 2], lower is better."""
    found = _log_softmax(logits, labels)
    if found is None:
        return None
    p = np.exp(found[0])
    p[np.arange(len(p)), found[1]] -= 1.0
    return float((p * p).sum(axis=1).mean())


def nll(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean negative log-likelihood of the labels in nats, from logits, without clipping. None over NaN."""
    found = _log_softmax(logits, labels)
    return None if found is None else float(-found[0][np.arange(len(found[1])), found[1]].mean())
