"""Frechet distance and KID against closed forms, double loops, other libraries and repeated sampling."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm

from windtunnel import images
from windtunnel.engine import predict
from windtunnel.metrics.realism import frechet_distance, frechet_rows, kid, kid_rows
from windtunnel.models.load import load_model
from windtunnel.stages.purify import nchw

MODELS = Path(__file__).parents[1] / "resources" / "models"


def gaussian(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """[n, D] with *exactly* this sample mean and (n - 1) covariance."""
    raw = np.random.default_rng(seed).normal(size=(n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw.T).reshape(len(mean), -1))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def correlated(n: int, width: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return scale * np.abs(rng.normal(size=(n, width)) @ mixing) + shift


# ---------------------------------------------------------------------------------------------------- Frechet distance


def test_frechet_of_gaussians_whose_covariances_commute() -> None:
    """|m_a - m_b|^2 + sum (sigma_a - sigma_b)^2 over common axes."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    s_a, s_b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    m_a, m_b = np.zeros(4), np.array([1.0, -2.0, 0.0, 0.5])
    a = gaussian(60, m_a, turn @ np.diag(s_a**2) @ turn.T, 1)
    b = gaussian(90, m_b, turn @ np.diag(s_b**2) @ turn.T, 2)
    expected = float(((m_a - m_b) ** 2).sum() + ((s_a - s_b) ** 2).sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
    one, two = gaussian(30, np.array([1.0]), np.array([[4.0]]), 3), gaussian(20, np.array([0.0]), np.array([[9.0]]), 4)
    assert frechet_distance(one, two) == pytest.approx(2.0, rel=1e-12)
    assert frechet_distance(a, a) < 1e-12 and frechet_distance(a, a + 3.0) == pytest.approx(36.0, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 6), (40, 40, 12), (9, 30, 12), (8, 8, 20)])
def test_frechet_is_that_of_scipys_matrix_root_also_where_covariances_are_singular(n: int, m: int, width: int) -> None:
    a, b = correlated(n, width, 0), correlated(m, width, 1, scale=1.4, shift=0.1)
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    ridge = 0 if min(n, m) > width else 1e-13  # a product of singular matrices may have no root at all
    root = sqrtm((s_a + ridge * np.eye(width)) @ (s_b + ridge * np.eye(width)))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if ridge == 0 else 1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    if ridge == 0:
        assert frechet_distance(a, b) > 0.01


def test_frechet_rows_are_the_distance_and_the_influence_of_each_pair() -> None:
    """Against the derivative of the weighted distance, by finite differences through scipy's matrix root."""
    n, width = 25, 4
    a = correlated(n, width, 0)
    b = 0.8 * a + 0.3 * correlated(n, width, 1)

    def weighted_distance(weights: np.ndarray) -> float:
        moments = []
        for x in (a, b):
            mean = weights @ x
            moments.append((mean, n / (n - 1) * ((x - mean).T * weights) @ (x - mean)))
        (m_a, s_a), (m_b, s_b) = moments
        return float(((m_a - m_b) ** 2).sum() + np.trace(s_a + s_b - 2 * np.real(sqrtm(s_a @ s_b))))

    rows, even = frechet_rows(a, b), np.full(n, 1 / n)
    assert weighted_distance(even) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert rows.mean() == pytest.approx(frechet_distance(a, b), rel=1e-12)
    for i in range(n):
        towards = np.eye(n)[i] - even
        slope = (weighted_distance(even + 1e-4 * towards) - weighted_distance(even - 1e-4 * towards)) / 2e-4
        assert rows[i] - rows.mean() == pytest.approx(slope, rel=1e-4, abs=1e-6)
    wide = frechet_rows(correlated(10, 16, 2), correlated(10, 16, 3))
    assert np.isfinite(wide).all() and wide.mean() > 0


def test_spread_of_frechet_rows_is_the_standard_error_over_repeated_samples() -> None:
    values, errors = [], []
    for seed in range(150):
        a = correlated(300, 5, 2 * seed)
        b = 0.7 * a + 0.4 * correlated(300, 5, 2 * seed + 1) + 0.1
        rows = frechet_rows(a, b)
        values.append(rows.mean())
        errors.append(rows.std(ddof=1) / np.sqrt(300))
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


# ----------------------------------------------------------------------------------------------------------------- KID


def kernel(x: np.ndarray, y: np.ndarray, degree: int = 3) -> float:
    return float((sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** degree)


def by_loops(a: np.ndarray, b: np.ndarray) -> float:
    n, m = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (n * m)


def pairs_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    n = len(a)
    h = [
        kernel(a[i], a[j]) + kernel(b[i], b[j]) - kernel(a[i], b[j]) - kernel(a[j], b[i])
        for i in range(n)
        for j in range(n)
        if i != j
    ]
    return sum(h) / len(h)


def test_kid_is_the_double_loop_and_its_interval_the_jackknife_of_it() -> None:
    a, b = correlated(9, 4, 0), correlated(7, 4, 1, scale=1.5)
    found = kid(a, b)
    assert found.value == pytest.approx(by_loops(a, b), rel=1e-12)
    assert (found.n, found.ci_method) == (16, "jackknife")
    without_a = np.array([by_loops(np.delete(a, i, 0), b) for i in range(9)])
    without_b = np.array([by_loops(a, np.delete(b, i, 0)) for i in range(7)])
    variance = 8 / 9 * ((without_a - without_a.mean()) ** 2).sum() + 6 / 7 * ((without_b - without_b.mean()) ** 2).sum()
    half = 1.959963984540054 * np.sqrt(variance)
    assert (found.ci_low, found.ci_high) == pytest.approx((found.value - half, found.value + half), rel=1e-9)


def test_kid_uses_the_polynomial_kernel_of_scikit_learn() -> None:
    from sklearn.metrics.pairwise import polynomial_kernel

    a, b = correlated(30, 6, 0), correlated(40, 6, 1, shift=0.2)
    for degree in (1, 3):
        k_aa, k_bb, k_ab = (polynomial_kernel(x, y, degree=degree) for x, y in ((a, a), (b, b), (a, b)))
        expected = (k_aa.sum() - np.trace(k_aa)) / 870 + (k_bb.sum() - np.trace(k_bb)) / 1560 - 2 * k_ab.mean()
        assert kid(a, b, degree=degree).value == pytest.approx(expected, rel=1e-9)
    shift = a.mean(0) - b.mean(0)  # degree 1: the squared distance of the means, less the variances of the means
    linear = (shift @ shift - np.trace(np.cov(a.T)) / 30 - np.trace(np.cov(b.T)) / 40) / 6
    assert kid(a, b, degree=1).value == pytest.approx(linear, rel=1e-9)


def test_kid_rows_are_jackknife_pseudo_values_of_the_pairs() -> None:
    a = correlated(8, 4, 0)
    b = 0.8 * a + 0.3 * correlated(8, 4, 1)
    whole = pairs_by_loops(a, b)
    left_out = [pairs_by_loops(np.delete(a, i, 0), np.delete(b, i, 0)) for i in range(8)]
    rows = kid_rows(a, b)
    assert np.abs(rows - [8 * whole - 7 * u for u in left_out]).max() < 1e-9
    assert rows.mean() == pytest.approx(whole, rel=1e-9)
    order = np.random.default_rng(0).permutation(8)
    assert np.abs(kid_rows(a[order], b[order]) - rows[order]).max() < 1e-12


def test_spread_over_repeated_samples_and_no_bias() -> None:
    """The pseudo-values' standard error is right; that of plain row means would be half of it. And small sets are
    unbiased: their mean is what large sets say."""
    values, errors, plain, truth = [], [], [], []
    for seed in range(300):
        a = correlated(60, 5, 2 * seed)
        b = 0.8 * a + 0.5 * correlated(60, 5, 2 * seed + 1)
        rows = kid_rows(a, b)
        values.append(rows.mean())
        errors.append(rows.std(ddof=1) / np.sqrt(60))
        plain.append((rows * 58 + 60 * rows.mean()).std(ddof=1) / 118 / np.sqrt(60))
    for seed in range(4):
        a = correlated(3000, 5, 10_000 + 2 * seed)
        truth.append(kid_rows(a, 0.8 * a + 0.5 * correlated(3000, 5, 10_001 + 2 * seed)).mean())
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)
    assert np.mean(plain) < 0.65 * np.std(values)
    assert abs(np.mean(values) - np.mean(truth)) < 4 * np.std(values) / np.sqrt(300)
    independent = [kid(correlated(40, 5, 3 * s), correlated(50, 5, 3 * s + 1, scale=1.2)) for s in range(200)]
    found = np.array([e.value for e in independent])
    halves = np.array([(e.ci_high - e.ci_low) / 2 / 1.96 for e in independent])
    assert halves.mean() == pytest.approx(found.std(), rel=0.2)


# --------------------------------------------------------------------------------------------- what small sets can show


@cache
def digit_features() -> np.ndarray:
    test = images.build("photodigits", "test")
    features = predict(load_model(MODELS / "digits-cnn"), nchw(test.images), with_features=True)[1]
    assert features is not None
    return features.astype(np.float64)


def test_two_halves_of_one_set_frechet_is_far_from_0_and_grows_as_they_shrink_but_kid_is_not() -> None:
    features = digit_features()
    order = np.random.default_rng(0).permutation(len(features))
    distances = []
    for n in (250, 125, 60):
        a, b = features[order[:n]], features[order[n : 2 * n]]
        estimate = kid(a, b)
        assert estimate.ci_low < 0 < estimate.ci_high
        distances.append(frechet_distance(a, b))
    total = np.trace(np.cov(features.T))
    assert 0.02 * total < distances[0] < distances[1] < distances[2]
    moved = features + 0.3 * features.std(axis=0) * np.random.default_rng(1).choice([-1, 1], 128)
    assert kid(features[order[:250]], moved[order[250:]]).ci_low > 0  # and it sees what there is to see


def test_equal_sets_are_exactly_0_and_what_cannot_be_answered_is_said() -> None:
    a = correlated(12, 4, 0)
    assert (kid_rows(a, a.copy()) == 0).all() and (frechet_rows(a, a.copy()) == 0).all()
    assert np.isnan(kid_rows(a[:2], a[:2])).all() and np.isnan(frechet_rows(a[:2], a[:2])).all()
    assert kid_rows(a[:0], a[:0]).shape == (0,) and kid(a[:2], a).value is None
    with pytest.raises(ValueError, match="finite"):
        kid(np.where(a > a.max() - 1e-9, np.nan, a), a)
    with pytest.raises(ValueError, match="width"):
        frechet_distance(a, a[:, :3])
    with pytest.raises(ValueError, match="one shape"):
        kid_rows(a, a[:5])
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        frechet_distance(a[0], a)
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(a[:1], a)
