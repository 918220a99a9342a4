"""How far two sets of pictures are apart as *sets*: Frechet distance and KID, on features of a network. Pure arrays.

Both depend on the network: numbers of two networks cannot be compared, and a codec trained against a network's features
should be judged on another's. The Frechet distance is biased upwards at small n (two halves of one set are far from 0:
Chong & Forsyth, Effectively Unbiased FID and Inception Score, 2020, https://arxiv.org/abs/1911.07023), by an amount
that depends on n and on the set: only distances of equal n may be compared, and none with 0. KID is unbiased, comes
with an interval, and is what a claim should rest on at a few hundred pictures.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from windtunnel.metrics.intervals import Estimate

DEGREE = 3
FEWEST = 3


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features [N, D], [M, D]; at least 0.

    ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` with sample (n - 1) covariances. Paper: Heusel et al., GANs
    Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017,
    https://arxiv.org/abs/1706.08500 (FID where the features are Inception's, which is not asked here). The root's
    trace is computed as the sum of the singular values of ``R_a R_b^T`` with ``S = R^T R``, which needs no matrix root
    and holds for singular covariances (N <= D) too. Biased at small n: see the module.
    """
    a, b = _features(features_a), _features(features_b)
    _same_width(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs at least two rows, not {len(a)} and {len(b)}")
    shift = a.mean(axis=0) - b.mean(axis=0)
    factors = [np.linalg.qr((x - x.mean(axis=0)) / math.sqrt(len(x) - 1), mode="r") for x in (a, b)]
    common = np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum()
    spread = sum(float((r * r).sum()) for r in factors)
    return max(0.0, float(shift @ shift) + spread - 2 * float(common))


def frechet_rows(features_a: np.ndarray, features_b: np.ndarray) -> np.ndarray:
    """[N] float64 whose mean is ``frechet_distance`` of two sets of *pairs* [N, D] (a picture and what became of it).

    Row i is the distance plus the first-order influence of pair i on it, so that the spread of the rows over sqrt(N) is
    the distance's standard error (a broadcast constant would claim an interval of length 0). With
    ``T_a`` the linear optimal transport from S_a to S_b, and centred features u, v:

        2 (m_a - m_b)(u_i - v_i) + N / (N - 1) (u_i (I - T_a) u_i + v_i (I - T_b) v_i) - mean of the same

    It says nothing of the bias. Pairs share their sampling noise, so unlike the distance of two disjoint sets this one
    is exactly 0 for equal pictures. Fewer than three rows give NaN.
    """
    a, b = _features(features_a), _features(features_b)
    _paired(a, b)
    n = len(a)
    if n < FEWEST:
        return np.full(n, np.nan)
    if np.array_equal(a, b):
        return np.zeros(n)
    shift = a.mean(axis=0) - b.mean(axis=0)
    u, v = a - a.mean(axis=0), b - b.mean(axis=0)
    (q_a, r_a), (q_b, r_b) = np.linalg.qr(u), np.linalg.qr(v)
    left, values, right = np.linalg.svd(r_a @ r_b.T, full_matrices=False)
    # u = q_a r_a and T_a r_a^T = r_b^T V U^T, so u_i T_a u_i needs no inverse, however singular S_a is
    moved = ((q_a @ left) ** 2 + (q_b @ right.T) ** 2) @ values
    bent = (u * u).sum(axis=1) + (v * v).sum(axis=1) - moved
    influence = 2 * (u - v) @ shift + n / (n - 1) * bent
    return frechet_distance(a, b) + influence - influence.mean()


def kid(features_a: np.ndarray, features_b: np.ndarray, *, degree: int = DEGREE, level: float = 0.95) -> Estimate:
    """Kernel (Inception) distance of two *independent* sets of features [N, D], [M, D], with its interval.

    Paper: Binkowski et al., Demystifying MMD GANs, 2018, https://arxiv.org/abs/1801.01401: the unbiased squared
    maximum mean discrepancy with the kernel ``(x.y / D + 1)^degree``, degree 3 as there:

        mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i, j} k(a_i, b_j)

    Unbiased at any n, so it may be negative. Interval: normal, with the two-sample jackknife's standard error (each
    picture left out once); where the sets are alike the statistic degenerates and the interval is too wide rather than
    too narrow. All pictures at once where the paper averages over subsets. Rows must be independent; for pictures and
    what became of them take ``kid_rows``. ``n`` is N + M. Fewer than three rows in a set: no value.
    """
    a, b = _features(features_a), _features(features_b)
    _same_width(a, b)
    n, m = len(a), len(b)
    if min(n, m) < FEWEST:
        return Estimate(value=None, n=n + m, n_clusters=n + m)
    within_a, within_b, across = _others(_kernel(a, a, degree)), _others(_kernel(b, b, degree)), _kernel(a, b, degree)
    value = within_a.sum() / (n * (n - 1)) + within_b.sum() / (m * (m - 1)) - 2 * across.mean()
    variance = 0.0
    for rows, cross, other in ((within_a, across.sum(axis=1), m), (within_b, across.sum(axis=0), n)):
        size = len(rows)
        # the terms in which a picture takes part, without it: all else stays
        left_out = (rows.sum() - 2 * rows) / ((size - 1) * (size - 2)) - 2 * (cross.sum() - cross) / (
            (size - 1) * other
        )
        variance += (size - 1) / size * float(((left_out - left_out.mean()) ** 2).sum())
    half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    value = float(value)
    return Estimate(
        value=value, ci_low=value - half, ci_high=value + half, ci_method="jackknife", n=n + m, n_clusters=n + m
    )


def kid_rows(features_a: np.ndarray, features_b: np.ndarray, *, degree: int = DEGREE) -> np.ndarray:
    """[N] float64 whose mean is the unbiased KID of two sets of *pairs* [N, D] (a picture and what became of it).

    With ``h_ij = k(a_i, a_j) + k(b_i, b_j) - k(a_i, b_j) - k(a_j, b_i)`` the estimate is ``U = mean_{i != j} h_ij``:
    it leaves out the cross terms of a pair with itself, which are no independent draws (with them it would be biased
    downwards). With the row means ``h_i = mean_{j != i} h_ij``, whose mean is U already, what is returned are the
    jackknife's pseudo-values ``(2 (N - 1) h_i - N U) / (N - 2)``: their mean is U exactly, and their spread over
    sqrt(N) is its standard error. The row means themselves spread half as much, for each picture takes part in two
    places: an interval from them would be half as wide as it should be. Where the sets are alike it is too wide rather
    than too narrow (Arvesen, Jackknifing U-Statistics, 1969, https://doi.org/10.1214/aoms/1177697287).

    Exactly 0 for equal sets; single rows may be negative. Fewer than three rows give NaN.
    """
    a, b = _features(features_a), _features(features_b)
    _paired(a, b)
    n = len(a)
    if n < FEWEST:
        return np.full(n, np.nan)
    if np.array_equal(a, b):
        return np.zeros(n)
    cross = _kernel(a, b, degree)
    h = _kernel(a, a, degree) + _kernel(b, b, degree) - (cross + cross.T)
    rows = _others(h) / (n - 1)
    return (2 * (n - 1) * rows - n * rows.mean()) / (n - 2)


def _kernel(a: np.ndarray, b: np.ndarray, degree: int) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1.0) ** degree


def _others(matrix: np.ndarray) -> np.ndarray:
    """[N] row sums without the diagonal."""
    return matrix.sum(axis=1) - np.diag(matrix)


def _features(features: np.ndarray) -> np.ndarray:
    found = np.asarray(features, dtype=np.float64)
    if found.ndim != 2:
        raise ValueError(f"features must be [N, D], not {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError("features must be finite: leave out the pictures whose features are not, and say how many")
    return found


def _same_width(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of one network have one width, not {a.shape[1]} and {b.shape[1]}")


def _paired(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise ValueError(f"pairs of features have one shape, not {a.shape} and {b.shape}")
