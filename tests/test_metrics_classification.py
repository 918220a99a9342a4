"""Accuracy, robust accuracy and calibration against hand counts, scikit-learn and simulations with a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from windtunnel.metrics import classification as cl
from windtunnel.metrics.intervals import clopper_pearson, wilson


def test_accuracy_counts_what_has_no_outcome_as_wrong():
    found = cl.accuracy(np.array([1, 1, 0, np.nan]))
    assert found.value == 0.5 and found.n == 4 and found.n_nan == 1 and found.ci_method == "wilson"
    assert (found.ci_low, found.ci_high) == wilson(2, 4)
    clustered = cl.accuracy(np.array([1, 1, 0, 1, 0, 1], dtype=bool), ["a", "a", "b", "b", "c", "d"])
    assert clustered.ci_method == "cluster_bootstrap" and clustered.n_clusters == 4
    assert cl.accuracy(np.array([])).value is None


def test_robust_means_correct_under_every_candidate():
    correct = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]])
    found = cl.robust_accuracy(correct)
    assert found.estimate.value == 0.25 and found.bound_low == found.bound_high == 0.25
    assert found.n_errors == 0 and found.reason is None
    assert (found.estimate.ci_low, found.estimate.ci_high) == wilson(1, 4)
    alone = cl.robust_accuracy(correct[:, :1])
    assert alone.estimate.value == cl.accuracy(correct[:, 0]).value


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**31))
def test_another_candidate_never_raises_robust_accuracy(n, candidates, seed):
    correct = np.random.default_rng(seed).random((n, candidates)) < 0.7
    values = [cl.robust_accuracy(correct[:, : k + 1]).estimate.value for k in range(candidates)]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))
    assert values[-1] == np.mean([all(row) for row in correct])


def test_errors_are_never_robust_and_give_bounds():
    correct = np.ones((400, 2))
    correct[0] = 0
    correct[1, 1] = np.nan  # no outcome
    errors = np.zeros((400, 2), dtype=bool)
    errors[2, 0] = True  # an attack that raised on a sample otherwise robust
    errors[0, 1] = True  # the sample was broken anyway: nothing is hidden
    few = cl.robust_accuracy(correct, errors=errors)
    assert few.n_errors == 3 and few.reason is None
    assert few.estimate.value == few.bound_low == 397 / 400 and few.bound_high == 399 / 400
    errors[1:11, 0] = True
    many = cl.robust_accuracy(correct, errors=errors)
    assert many.estimate.value is None and many.estimate.ci_low is None and "11 of 400" in many.reason
    assert (many.bound_low, many.bound_high) == (389 / 400, 399 / 400) and many.estimate.n_nan == 11
    with pytest.raises(ValueError, match="samples, candidates"):
        cl.robust_accuracy(np.ones(4))
    with pytest.raises(ValueError, match="at least one candidate"):
        cl.robust_accuracy(np.ones((4, 0)))
    assert cl.robust_accuracy(np.ones((0, 2))).bound_low is None


def test_worst_class():
    labels = np.repeat([3, 7, 9], [10, 20, 40])
    correct = np.r_[np.ones(9), 0, np.ones(10), np.zeros(10), np.ones(30), np.zeros(10)]
    found = cl.worst_class_accuracy(correct, labels)
    assert found.label == 7 and found.estimate.value == 0.5 and found.estimate.n == 20
    each = 1 - 0.05 / 3
    ends = [clopper_pearson(9, 10, each), clopper_pearson(10, 20, each), clopper_pearson(30, 40, each)]
    assert found.estimate.ci_low == min(e[0] for e in ends) and found.estimate.ci_high == min(e[1] for e in ends)
    assert found.estimate.ci_high < ends[0][1]
    assert cl.worst_class_accuracy(np.array([]), np.array([])).label is None
    with pytest.raises(ValueError, match="labels"):
        cl.worst_class_accuracy(correct, labels[:5])


def test_worst_class_interval_covers_the_worst_class():
    """Ten classes equally good at .9: the lowest estimate is far below, the interval still covers .9."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 50)
    covered, naive = 0, 0
    for _ in range(200):
        found = cl.worst_class_accuracy(rng.random(500) < 0.9, labels).estimate
        covered += found.ci_low <= 0.9 <= found.ci_high
        low, high = wilson(found.value * 50, 50)
        naive += low <= 0.9 <= high
    assert covered >= 186 and naive < 170


# ---- calibration


def test_ece_by_hand():
    confidence = np.array([0.05, 0.15, 0.15, 0.95, 0.95, 0.95, 0.95])
    correct = np.array([0, 1, 0, 1, 1, 1, 0])
    expected = (1 * 0.05 + 2 * abs(0.15 - 0.5) + 4 * abs(0.95 - 0.75)) / 7
    assert cl.ece(confidence, correct, bins=10) == pytest.approx(expected, abs=1e-12)
    rows = cl.reliability_bins(confidence, correct, bins=10)
    assert [r.n for r in rows] == [1, 2, 0, 0, 0, 0, 0, 0, 0, 4] and rows[2].accuracy is None and rows[2].ci_low is None
    assert rows[9].accuracy == 0.75 and (rows[9].ci_low, rows[9].ci_high) == wilson(3, 4)
    assert sum(r.n / 7 * abs(r.confidence - r.accuracy) for r in rows if r.n) == pytest.approx(expected, abs=1e-12)


def test_bin_edges_belong_to_the_bin_below_and_one_and_zero_have_a_place():
    rows = cl.reliability_bins(np.array([0.0, 0.2, 0.2000001, 1.0]), np.ones(4), bins=5)
    assert [r.n for r in rows] == [2, 1, 0, 0, 1]
    assert (rows[0].low, rows[0].high, rows[4].high) == (0.0, 0.2, 1.0)


def test_equal_mass_bins_are_equal_and_keep_ties_together():
    p = np.linspace(0.1, 0.9, 150)
    assert np.bincount(cl._equal_mass(p, 15)).tolist() == [10] * 15
    tied = np.r_[np.full(100, 1.0), np.linspace(0.1, 0.9, 50)]
    assert len(np.unique(cl._equal_mass(tied, 15)[:100])) == 1
    assert cl.ece(p, (p > 0.5) * 1.0, equal_mass=True) == pytest.approx(
        np.mean([abs(p[i : i + 10].mean() - (p[i : i + 10] > 0.5).mean()) for i in range(0, 150, 10)]), abs=1e-12
    )


@pytest.mark.parametrize("equal_mass", [False, True])
def test_debiased_ece_is_nearer_the_truth_and_the_null_value_is_what_a_perfect_model_shows(equal_mass):
    rng = np.random.default_rng(0)
    perfect, off, null = [], [], []
    for _ in range(300):
        p = 1 - rng.beta(2, 8, size=500)
        right = rng.random(500)
        options = {"equal_mass": equal_mass}
        perfect.append((cl.ece(p, right < p, **options), cl.ece_debiased(p, right < p, **options)))
        off.append((cl.ece(p, right < p - 0.05, **options), cl.ece_debiased(p, right < p - 0.05, **options)))
        null.append(cl.ece_null(p, **options))
    plain, debiased = np.mean(perfect, axis=0)
    assert plain > 0.015 and debiased < 0.7 * plain  # the truth is 0
    assert np.mean(null) == pytest.approx(plain, rel=0.05)
    plain, debiased = np.mean(off, axis=0)
    assert abs(debiased - 0.05) < abs(plain - 0.05)


def test_folded_normal_mean_equals_simulation():
    z = np.random.default_rng(0).normal(size=400_000)
    for mean, sd in ((0.0, 1.0), (0.5, 1.0), (-2.0, 0.3), (0.1, 0.0)):
        expected = np.abs(mean + sd * z).mean()
        assert cl._folded_normal_mean(np.array([mean]), np.array([sd]))[0] == pytest.approx(expected, abs=4e-3)


def test_brier_and_nll_equal_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 5)) * 3, rng.integers(0, 5, 200)
    p = softmax(logits, axis=1)
    assert cl.nll(logits, labels) == pytest.approx(log_loss(labels, p, labels=np.arange(5)), rel=1e-10)
    assert cl.brier(logits, labels) == pytest.approx(((p - np.eye(5)[labels]) ** 2).sum(1).mean(), rel=1e-12)
    top, correct = p.max(1), p.argmax(1) == labels
    assert cl.brier_top(top, correct) == pytest.approx(brier_score_loss(correct, top), rel=1e-12)
    two = rng.normal(size=(50, 2))
    y = rng.integers(0, 2, 50)
    assert cl.brier(two, y) == pytest.approx(2 * brier_score_loss(y, softmax(two, axis=1)[:, 1]), rel=1e-10)
    # saturated: minus the logit gap, not the logarithm of a clipped zero
    assert cl.nll(np.array([[1000.0, 0.0]]), np.array([1])) == pytest.approx(1000.0)


def test_calibration_of_nan_is_none_and_of_nonsense_an_error():
    p, y = np.array([0.5, np.nan]), np.array([1.0, 0.0])
    for metric in (cl.ece, cl.ece_debiased, cl.brier_top, cl.reliability_bins):
        assert metric(p, y) is None and metric(np.array([]), np.array([])) is None
    assert cl.ece_null(p) is None
    assert cl.nll(np.array([[np.nan, 0.0]]), np.array([0])) is None
    assert cl.brier(np.array([[np.nan, 0.0]]), np.array([0])) is None
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        cl.ece(np.array([1.5]), np.array([1.0]))
    with pytest.raises(ValueError, match="per sample"):
        cl.ece(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match="between 0 and 1"):
        cl.nll(np.zeros((1, 2)), np.array([2]))
