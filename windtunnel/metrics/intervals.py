"""Intervals, resampling and paired tests: everything that says how far a number can be trusted.

Samples that share a ``source_id`` (a glyph, a photograph) are not independent, so whole sources are resampled: Wilson
is used only where every sample has its own source, a cluster bootstrap elsewhere, and each result names its method.
Seeds of training are never pooled into such an interval: they have a t interval of their own. Pure functions, no
torch, no I/O; absent is ``None``.

References: Wilson (1927), Probable inference, the law of succession, and statistical inference,
https://doi.org/10.1080/01621459.1927.10502953; Clopper and Pearson (1934), https://doi.org/10.1093/biomet/26.4.404;
Efron (1979), Bootstrap methods, https://doi.org/10.1214/aos/1176344552; McNemar (1947),
https://doi.org/10.1007/BF02295996; Holm (1979), A simple sequentially rejective multiple test procedure,
https://www.jstor.org/stable/4615733; Tango (1998), Equivalence test and confidence interval for the difference in
proportions for the paired-sample design, Statistics in Medicine 17, 891-908.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Interval = tuple[float | None, float | None]
DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval. ``n_nan`` rows had no value: ``value`` is null, or they count as wrong; each says."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None
    n: int = 0
    n_clusters: int = 0
    n_nan: int = 0


# ---- proportions of independent samples


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Wilson score interval of a proportion; ``successes`` may be fractional (a mean over sources)."""
    if n <= 0:
        return None, None
    z = float(stats.norm.ppf(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # at 0 and n the end is exactly 0 or 1; rounding would leave 1e-17
    return (0.0 if p == 0 else max(0.0, centre - half)), (1.0 if p == 1 else min(1.0, centre + half))


def clopper_pearson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Exact (conservative) interval of a proportion from the beta distribution. n = 0 gives None."""
    if n <= 0:
        return None, None
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


# ---- resampling whole sources


def source_codes(source_ids: Sequence[Hashable] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(names [S] sorted strings, codes [n])``: the distinct sources and each sample's place among them."""
    names, codes = np.unique(np.asarray(source_ids).astype(str), return_inverse=True)
    return names, codes


def source_draws(names: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """[B, S] uint16: how often each of S sources is drawn when S are drawn with replacement, B times.

    The generator is seeded by ``seed`` *and the names*: the same sources always get the same draws, so that two
    scores, models or defenses on them are paired, while two disjoint sets of equal size are independent. The array is
    stored replicate by replicate along the fast axis (its transpose is contiguous), which is how the weighted metrics
    walk it.
    """
    digest = hashlib.sha256("\x1f".join(names.tolist()).encode()).digest()
    rng = np.random.default_rng([seed, *np.frombuffer(digest, dtype=np.uint32).tolist()])
    size = len(names)
    out = np.empty((size, replicates), dtype=np.uint16)
    step = max(1, DRAWS_AT_ONCE // max(1, size))
    for start in range(0, replicates, step):
        width = min(step, replicates - start)
        drawn = rng.integers(0, size, size=(size, width))
        flat = np.bincount((drawn * width + np.arange(width)).ravel(), minlength=size * width)
        out[:, start : start + width] = flat.reshape(size, width)
    return out.T


def resample_weights(source_ids: Sequence[Hashable] | np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """[B, n] uint16 weight of each sample in each replicate: multinomial over sources, see ``source_draws``.

    Samples of one source share their weight; where every sample has its own source each row sums to n.
    """
    names, codes = source_codes(source_ids)
    return source_draws(names, replicates, seed).T[codes].T


def pooled_weights(
    sources_by_set: Mapping[str, Sequence[Hashable] | np.ndarray], replicates: int, seed: int
) -> dict[str, np.ndarray]:
    """[B, n] weights of several sets: those that share a source (however indirectly) are resampled as one pool.

    Scrambled digits made from test glyphs share the glyphs' draws, so that the covariance stays in the interval; sets
    without a common source are drawn independently.
    """
    named = {key: source_codes(ids) for key, ids in sources_by_set.items()}
    pool_of = {key: key for key in named}
    first_owner: dict[str, str] = {}

    def root(key: str) -> str:
        while pool_of[key] != key:
            key = pool_of[key]
        return key

    for key, (names, _) in named.items():
        for name in names.tolist():
            owner = first_owner.setdefault(name, key)
            pool_of[root(key)] = root(owner)
    out: dict[str, np.ndarray] = {}
    draws: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for key, (names, codes) in named.items():
        pool = root(key)
        if pool not in draws:
            union = np.unique(np.concatenate([n for k, (n, _) in named.items() if root(k) == pool]))
            draws[pool] = union, source_draws(union, replicates, seed)
        union, drawn = draws[pool]
        out[key] = drawn.T[np.searchsorted(union, names)[codes]].T
    return out


def percentile_interval(replicates: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval of bootstrap replicates [B]; null if any replicate is undefined (a set drawn empty)."""
    if not len(replicates) or not np.isfinite(replicates).all():
        return None, None
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_means(
    values: np.ndarray, source_ids: Sequence[Hashable] | np.ndarray, replicates: int, seed: int
) -> np.ndarray:
    """[B] weighted means of ``values`` [n] over resampled sources (a ratio where sources differ in size)."""
    names, codes = source_codes(source_ids)
    drawn = source_draws(names, replicates, seed).astype(np.float64)
    sums = np.bincount(codes, weights=np.asarray(values, dtype=np.float64), minlength=len(names))
    counts = np.bincount(codes, minlength=len(names)).astype(np.float64)
    return (drawn * sums).sum(axis=1) / (drawn * counts).sum(axis=1)


def mean_estimate(
    values: np.ndarray,
    source_ids: Sequence[Hashable] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Mean of ``values`` [n] with the interval its sources allow; ``source_ids`` None says that all are independent.

    ``ci_method``: ``wilson`` (0/1 values, every source unique); ``cluster_bootstrap`` (percentile) elsewhere;
    ``wilson_over_sources`` where all values are 0 or all are 1 but sources repeat: the bootstrap would give an
    interval of length 0, so the number of sources stands for the number of samples. A single source has no interval.
    Any NaN makes the value null, with the count.
    """
    v = np.asarray(values, dtype=np.float64)
    n = len(v)
    clusters = n if source_ids is None else len(source_codes(source_ids)[0])
    missing = int(np.isnan(v).sum())
    if n == 0 or missing:
        return Estimate(value=None, n=n, n_clusters=clusters, n_nan=missing)
    value = float(v.mean())
    low: float | None = None
    high: float | None = None
    method: str | None = None
    binary = bool(np.isin(v, (0.0, 1.0)).all())
    if binary and clusters == n:
        (low, high), method = wilson(int(v.sum()), n, level), "wilson"
    elif binary and value in (0.0, 1.0) and clusters > 1:
        (low, high), method = wilson(value * clusters, clusters, level), "wilson_over_sources"
    elif clusters > 1:
        ids = np.arange(n) if source_ids is None else source_ids
        low, high = percentile_interval(bootstrap_means(v, ids, replicates, seed), level)
        method = "cluster_bootstrap"
    return Estimate(value=value, ci_low=low, ci_high=high, ci_method=method, n=n, n_clusters=clusters)


# ---- seeds


@dataclass(frozen=True, kw_only=True)
class SeedSummary:
    """Mean over training seeds, their standard deviation (ddof 1) and the t interval of the mean; null for one seed."""

    mean: float | None
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    seeds: int
    ci_method: str | None = "t_over_seeds"


def t_interval(values: Sequence[float | None], level: float = 0.95) -> SeedSummary:
    """Student t interval with S - 1 degrees over the values of S seeds (or over paired per-seed differences).

    A seed without a value makes everything null: a mean over the seeds that happened to work is another number.
    """
    if not len(values) or any(v is None or not math.isfinite(v) for v in values):
        return SeedSummary(mean=None, sd=None, ci_low=None, ci_high=None, seeds=len(values), ci_method=None)
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    if len(v) < 2:
        return SeedSummary(mean=mean, sd=None, ci_low=None, ci_high=None, seeds=1, ci_method=None)
    sd = float(v.std(ddof=1))
    half = float(stats.t.ppf(0.5 + level / 2, len(v) - 1)) * sd / math.sqrt(len(v))
    return SeedSummary(mean=mean, sd=sd, ci_low=mean - half, ci_high=mean + half, seeds=len(v))


# ---- two pipelines on the same samples


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test: the discordant pairs are fair coin flips. No discordant pair gives 1."""
    total = only_first + only_second
    return 1.0 if total == 0 else float(stats.binomtest(only_first, total, 0.5).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values in the order given; None stays None and is not counted as a test."""
    out: list[float | None] = [None] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if p is not None), key=lambda i: p_values[i])
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, (len(order) - rank) * p_values[i])
        out[i] = min(1.0, running)
    return out


def tango(only_first: int, only_second: int, n: int, level: float = 0.95) -> Interval:
    """Tango's score interval of the paired difference (first minus second) of two proportions on n samples.

    The ends are the differences d at which ``|b - c - n d| / sqrt(n (2 q + d (1 - d)))`` equals the normal quantile,
    q being the probability of "only second" that is most likely under d. It is defined for no discordant pair too.
    """
    if n <= 0:
        return None, None
    z = float(stats.norm.ppf(0.5 + level / 2))
    b, c = only_first, only_second
    found = (b - c) / n

    def statistic(d: float) -> float:
        linear = -b - c + (2 * n - b + c) * d
        q = (math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d))) - linear) / (4 * n)
        variance = n * (2 * q + d * (1 - d))
        excess = b - c - n * d
        if variance <= 0:
            return math.copysign(math.inf, excess) if excess else 0.0
        return excess / math.sqrt(variance)

    def end(outer: float) -> float:
        inside, outside = found, outer
        if abs(statistic(outside)) <= z:
            return outer
        for _ in range(200):
            middle = (inside + outside) / 2
            if abs(statistic(middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)


def minimal_detectable_effect(n: int, discordant: float, level: float = 0.95, power: float = 0.8) -> float | None:
    """Smallest true paired difference found with the given power when a share ``discordant`` of n samples disagrees.

    ``(z_level + z_power) sqrt(discordant / n)``: .028 for n = 500 and .05, .056 for .20.
    """
    if n <= 0:
        return None
    z = float(stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(power))
    return z * math.sqrt(discordant / n)


def equivalent(only_first: int, only_second: int, n: int, margin: float, alpha: float = 0.05) -> bool | None:
    """Two one-sided tests: whether the paired difference is shown to lie within +-margin at level alpha."""
    low, high = tango(only_first, only_second, n, level=1 - 2 * alpha)
    return None if low is None or high is None else -margin < low and high < margin


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """First minus second on the same samples, with interval and p; ``mde`` is what so many samples can show."""

    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_method: str | None = None
    p_value: float | None = None
    p_method: str | None = None
    mde: float | None = None
    n: int = 0
    n_clusters: int = 0
    n_nan: int = 0


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    source_ids: Sequence[Hashable] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    replicates: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Difference of two means on the same rows (a defense against none): 0/1 outcomes, or p(correct) in [0, 1].

    0/1 outcomes with a source each: Tango's interval and exact McNemar. Otherwise: paired cluster bootstrap and the
    exact sign test over sources (of which McNemar's is the special case). NaN in either makes everything null, with
    the count.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired samples differ in number: {a.shape} and {b.shape}")
    n = len(a)
    names, codes = source_codes(np.arange(n) if source_ids is None else source_ids)
    missing = int((np.isnan(a) | np.isnan(b)).sum())
    if n == 0 or missing:
        return PairedDifference(value=None, n=n, n_clusters=len(names), n_nan=missing)
    gap = a - b
    total = np.bincount(codes, weights=gap, minlength=len(names))
    better, worse = int((total > 0).sum()), int((total < 0).sum())
    if len(names) == n and bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all()):
        low, high = tango(better, worse, n, level)
        method, p_method = "tango", "mcnemar_exact"
    else:
        low, high = None, None
        if len(names) > 1:
            low, high = percentile_interval(bootstrap_means(gap, names[codes], replicates, seed), level)
        method, p_method = "paired_cluster_bootstrap", "sign_test_over_sources"
    return PairedDifference(
        value=float(gap.mean()),
        ci_low=low,
        ci_high=high,
        ci_method=method,
        p_value=mcnemar_exact(better, worse),
        p_method=p_method,
        mde=minimal_detectable_effect(len(names), (better + worse) / len(names)),
        n=n,
        n_clusters=len(names),
    )
