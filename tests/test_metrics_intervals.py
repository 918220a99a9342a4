"""Intervals, resampling and paired tests against published values, scipy, closed forms and small simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from windtunnel.metrics import intervals as iv

# Newcombe (1998), Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, table I
NEWCOMBE = [
    (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
    (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
    (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
    (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
]


@pytest.mark.parametrize(("hits", "n", "wilson", "exact"), NEWCOMBE)
def test_published_intervals_of_a_proportion(hits, n, wilson, exact):
    np.testing.assert_allclose(iv.wilson(hits, n), wilson, atol=5e-5)
    np.testing.assert_allclose(iv.clopper_pearson(hits, n), exact, atol=5e-5)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_intervals_of_a_proportion_equal_scipy_and_are_symmetric(case, level):
    hits, n = case
    ours, exact = iv.wilson(hits, n, level), iv.clopper_pearson(hits, n, level)
    result = stats.binomtest(hits, n)
    np.testing.assert_allclose(ours, result.proportion_ci(level, "wilson"), atol=1e-9)
    np.testing.assert_allclose(exact, result.proportion_ci(level, "exact"), atol=1e-9)
    mirrored = iv.wilson(n - hits, n, level)
    np.testing.assert_allclose(ours, (1 - mirrored[1], 1 - mirrored[0]), atol=1e-12)
    assert 0 <= ours[0] <= hits / n <= ours[1] <= 1


def test_nothing_has_no_interval():
    assert iv.wilson(0, 0) == iv.clopper_pearson(0, 0) == iv.tango(0, 0, 0) == (None, None)
    assert iv.mean_estimate(np.array([])).value is None
    assert iv.minimal_detectable_effect(0, 0.1) is None


# ---- resampling


def test_weights_are_multinomial_over_sources_and_shared_within_them():
    ids = np.array(["a", "b", "b", "c", "d", "d", "d"])
    w = iv.resample_weights(ids, 4000, 3)
    assert w.shape == (4000, 7) and w.dtype == np.uint16
    assert np.array_equal(w[:, 1], w[:, 2]) and np.array_equal(w[:, 4], w[:, 6])
    per_source = w[:, [0, 1, 3, 4]].astype(int)
    assert (per_source.sum(axis=1) == 4).all()
    np.testing.assert_allclose(per_source.mean(axis=0), 1, atol=0.06)  # Binomial(4, 1/4): mean 1, variance 3/4
    np.testing.assert_allclose(per_source.var(axis=0), 0.75, atol=0.07)
    np.testing.assert_allclose(np.cov(per_source.T)[0, 1], -0.25, atol=0.05)  # -n p^2


def test_weights_depend_on_the_sources_not_on_order_or_number_of_samples(monkeypatch):
    ids = [f"glyph-{i}" for i in range(50)]
    w = iv.resample_weights(ids, 20, 1)
    assert np.array_equal(w, iv.resample_weights(ids, 20, 1))
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(iv.resample_weights([ids[i] for i in order], 20, 1), w[:, order])
    assert np.array_equal(iv.resample_weights(ids + ids, 20, 1), np.concatenate([w, w], axis=1))
    assert not np.array_equal(w, iv.resample_weights(ids, 20, 2))
    other = iv.resample_weights([f"letter-{i}" for i in range(50)], 2000, 1)
    same_size = iv.resample_weights(ids, 2000, 1)
    assert abs(np.corrcoef(other.ravel(), same_size.ravel())[0, 1]) < 0.02, "disjoint sources must be independent"
    assert iv.resample_weights([3, 1, 2], 5, 0).tolist() == iv.resample_weights(["3", "1", "2"], 5, 0).tolist()


def test_sets_that_share_sources_are_one_pool():
    test, scrambled = [f"g{i}" for i in range(30)], [f"g{i}" for i in range(29, -1, -1)]
    chained = [f"g{i}" for i in range(25, 40)]
    letters = [f"l{i}" for i in range(30)]
    w = iv.pooled_weights({"id": test, "scrambled": scrambled, "letters": letters}, 500, 0)
    assert np.array_equal(w["scrambled"], w["id"][:, ::-1])
    assert np.array_equal(w["id"], iv.resample_weights(test, 500, 0))
    assert np.array_equal(w["letters"], iv.resample_weights(letters, 500, 0))
    w = iv.pooled_weights({"id": test, "letters": letters, "chained": chained}, 500, 0)
    assert np.array_equal(w["chained"][:, :5], w["id"][:, 25:])
    union = w["id"].astype(int).sum(axis=1) + w["chained"][:, 5:].astype(int).sum(axis=1)
    assert (union == 40).all()


def test_bootstrap_of_a_mean_has_the_textbook_error():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    reps = iv.bootstrap_means(x, np.arange(400), 4000, 0)
    assert reps.std() == pytest.approx(x.std() / math.sqrt(400), rel=0.04)
    assert reps.mean() == pytest.approx(x.mean(), abs=0.003)
    low, high = iv.percentile_interval(reps)
    z = stats.norm.ppf(0.975) * x.std() / 20
    np.testing.assert_allclose((low, high), (x.mean() - z, x.mean() + z), atol=0.012)


def test_cluster_bootstrap_sees_that_copies_are_no_new_samples():
    rng = np.random.default_rng(1)
    x = (rng.random(100) < 0.6).astype(float)
    ids = np.arange(100)
    single, five_times = iv.mean_estimate(x, ids), iv.mean_estimate(np.repeat(x, 5), np.repeat(ids, 5))
    assert single.ci_method == "wilson" and five_times.ci_method == "cluster_bootstrap"
    assert five_times.value == single.value and (five_times.n, five_times.n_clusters) == (500, 100)
    assert five_times.ci_high - five_times.ci_low == pytest.approx(single.ci_high - single.ci_low, rel=0.1)
    naive = iv.wilson(5 * int(x.sum()), 500)
    assert naive[1] - naive[0] < 0.6 * (five_times.ci_high - five_times.ci_low)


def test_coverage_of_the_cluster_bootstrap():
    """Beta-binomial clusters of 4: the true mean is covered in about 95 % of 200 sets; Wilson covers less."""
    rng = np.random.default_rng(2)
    hits = naive = 0
    ids = np.repeat(np.arange(80), 4)
    for trial in range(200):
        p = rng.beta(0.7 * 0.8, 0.3 * 0.8, size=80)
        x = (rng.random(320) < np.repeat(p, 4)).astype(float)
        found = iv.mean_estimate(x, ids, replicates=400, seed=trial)
        hits += found.ci_low <= 0.7 <= found.ci_high
        low, high = iv.wilson(int(x.sum()), 320)
        naive += low <= 0.7 <= high
    assert 180 <= hits <= 199  # 95 % within four standard errors
    assert naive < 175


def test_degenerate_means():
    all_right = iv.mean_estimate(np.ones(40), np.arange(40) // 2)
    assert all_right.ci_method == "wilson_over_sources"
    assert (all_right.ci_low, all_right.ci_high) == iv.wilson(20, 20)
    one_source = iv.mean_estimate(np.array([0.0, 1.0, 1.0]), ["a", "a", "a"])
    assert one_source.value == pytest.approx(2 / 3) and one_source.ci_low is None and one_source.ci_method is None
    missing = iv.mean_estimate(np.array([1.0, np.nan, np.nan]))
    assert missing.value is None and missing.ci_low is None and missing.n_nan == 2
    assert iv.percentile_interval(np.array([0.1, np.nan, 0.2])) == (None, None)
    fractional = iv.mean_estimate(np.linspace(0, 1, 30))
    assert fractional.ci_method == "cluster_bootstrap" and fractional.ci_low < 0.5 < fractional.ci_high


# ---- seeds


def test_t_interval_over_seeds():
    found = iv.t_interval([0.90, 0.94, 0.95])
    reference = stats.ttest_1samp([0.90, 0.94, 0.95], 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.ci_low, found.ci_high), reference, rtol=1e-12)
    assert found.sd == pytest.approx(np.std([0.90, 0.94, 0.95], ddof=1))
    # three seeds have t = 4.30
    assert (found.ci_high - found.mean) / (found.sd / math.sqrt(3)) == pytest.approx(4.303, abs=5e-4)
    one = iv.t_interval([0.9])
    assert one.mean == 0.9 and one.sd is None and one.ci_low is None
    for nothing in ([], [0.9, None], [0.9, float("nan")]):
        assert iv.t_interval(nothing).mean is None


# ---- paired


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_the_binomial_tail_sum(b, c):
    n, k = b + c, min(b, c)
    expected = 1.0 if n == 0 else min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)
    assert iv.mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)
    assert iv.mcnemar_exact(b, c) == pytest.approx(iv.mcnemar_exact(c, b), rel=1e-12)


def test_mcnemar_of_a_published_table():
    # Bentur et al. (2009), airway hyper-responsiveness before and after: 1 and 7 discordant; exact p .0703
    assert iv.mcnemar_exact(1, 7) == pytest.approx(0.0703125, abs=1e-12)


def test_holm_by_hand_and_with_nothing():
    np.testing.assert_allclose(iv.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert iv.holm([0.01, None, 0.04]) == [0.02, None, 0.04]
    assert iv.holm([0.9, 0.8]) == [1.0, 1.0] and iv.holm([]) == [] and iv.holm([None]) == [None]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    adjusted = iv.holm(p)
    alpha, rejected = 0.05, set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if (len(p) - rank) * p[i] > alpha:
            break
        rejected.add(i)
    assert rejected == {i for i, a in enumerate(adjusted) if a <= alpha}


def test_tango_of_a_published_table():
    # the same table, n = 21; Fagerland, Lydersen, Laake (2014): -0.517 to -0.026
    np.testing.assert_allclose(iv.tango(1, 7, 21), (-0.517, -0.026), atol=5e-4)


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (40, 20, 160), (0, 5, 30), (3, 3, 400)])
def test_tango_ends_are_where_the_score_statistic_meets_the_quantile(b, c, n):
    """Independent of the closed form: the nuisance is found by maximising the trinomial likelihood numerically."""
    for d in iv.tango(b, c, n):
        low, high = max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12

        def loss(q, d=d):
            return -(b * math.log(q + d) + c * math.log(q) + (n - b - c) * math.log(1 - 2 * q - d))

        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        statistic = (b - c - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))
        assert abs(statistic) == pytest.approx(stats.norm.ppf(0.975), abs=2e-4)


def test_tango_edges():
    low, high = iv.tango(0, 0, 100)
    z = stats.norm.ppf(0.975)
    assert high == pytest.approx(z**2 / (100 + z**2), rel=1e-9) and low == pytest.approx(-high)
    assert iv.tango(30, 0, 30)[1] == 1.0 and iv.tango(0, 30, 30)[0] == -1.0
    np.testing.assert_allclose(iv.tango(7, 3, 60), [-x for x in reversed(iv.tango(3, 7, 60))], atol=1e-12)


def test_minimal_detectable_effect_and_equivalence():
    assert iv.minimal_detectable_effect(500, 0.05) == pytest.approx(0.028, abs=5e-4)
    assert iv.minimal_detectable_effect(500, 0.20) == pytest.approx(0.056, abs=5e-4)
    assert iv.equivalent(5, 5, 500, margin=0.03) is True
    assert iv.equivalent(5, 5, 50, margin=0.03) is False and iv.equivalent(40, 5, 500, margin=0.03) is False
    assert iv.equivalent(0, 0, 0, margin=0.03) is None


def test_paired_difference_of_independent_and_of_clustered_samples():
    rng = np.random.default_rng(3)
    a = (rng.random(300) < 0.8).astype(float)
    b = np.where(rng.random(300) < 0.2, 0.0, a)
    found = iv.paired_difference(a, b)
    better, worse = int((a > b).sum()), int((a < b).sum())
    assert found.value == pytest.approx(a.mean() - b.mean()) and worse == 0
    assert (found.ci_low, found.ci_high) == iv.tango(better, worse, 300)
    assert found.p_value == iv.mcnemar_exact(better, worse) and found.p_method == "mcnemar_exact"
    ids = np.repeat(np.arange(300), 2)
    twice = iv.paired_difference(np.repeat(a, 2), np.repeat(b, 2), ids)
    assert twice.ci_method == "paired_cluster_bootstrap" and twice.p_method == "sign_test_over_sources"
    assert twice.p_value == found.p_value, "copies of a sample must not make it more significant"
    np.testing.assert_allclose((twice.ci_low, twice.ci_high), (found.ci_low, found.ci_high), atol=0.02)
    soft = iv.paired_difference(a * 0.9, b * 0.9)
    assert soft.ci_method == "paired_cluster_bootstrap" and soft.value == pytest.approx(0.9 * found.value)
    assert iv.paired_difference(np.array([1, np.nan]), np.array([1, 0.0])).n_nan == 1
    with pytest.raises(ValueError, match="differ in number"):
        iv.paired_difference(a, b[:10])
