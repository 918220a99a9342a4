"""Detection metrics against scikit-learn, brute force and the closed forms of Gaussians; bootstrap against brute
force.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from windtunnel.metrics import detection as dt
from windtunnel.metrics.intervals import resample_weights

CONVENTIONS = ("fpr95_id_positive", "fpr95_ood_positive")
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0, 1, 2, 12]))


def drawn(case) -> tuple[np.ndarray, np.ndarray]:
    """ID and OOD scores; few digits make many ties."""
    n, m, seed, digits = case
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(size=n), digits), np.round(rng.normal(size=m) + 0.7, digits)


def brute_fpr(metric: str, s: np.ndarray, o: np.ndarray) -> float:
    """First threshold, of all values, that reaches 95 of 100; counted in integers, one comparison at a time."""
    if metric == "fpr95_id_positive":
        for tau in sorted(s.tolist()):
            if 100 * sum(x <= tau for x in s) >= 95 * len(s):
                return sum(x <= tau for x in o) / len(o)
    for tau in sorted(o.tolist(), reverse=True):
        if 100 * sum(x >= tau for x in o) >= 95 * len(o):
            return sum(x >= tau for x in s) / len(s)
    raise AssertionError


@settings(max_examples=150, deadline=None)
@given(sizes)
def test_areas_equal_scikit_learn(case):
    s, o = drawn(case)
    y, x = np.r_[np.zeros(len(s)), np.ones(len(o))], np.r_[s, o]
    assert dt.auroc(s, o) == pytest.approx(sk.roc_auc_score(y, x), abs=1e-12)
    assert dt.ap_out(s, o) == pytest.approx(sk.average_precision_score(y, x), abs=1e-12)
    assert dt.ap_in(s, o) == pytest.approx(sk.average_precision_score(1 - y, -x), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(y, x)
    assert dt.aupr_out_trapezoid(s, o) == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    precision, recall, _ = sk.precision_recall_curve(1 - y, -x)
    assert dt.aupr_in_trapezoid(s, o) == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    flagged_id, flagged_ood = dt.roc_curve(s, o)
    fpr, tpr, _ = sk.roc_curve(y, x, drop_intermediate=False)
    np.testing.assert_allclose(flagged_id, fpr, atol=1e-12)
    np.testing.assert_allclose(flagged_ood, tpr, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(sizes)
def test_fpr_equals_scikit_learns_curve_and_brute_force(case):
    s, o = drawn(case)
    for metric in CONVENTIONS:
        assert getattr(dt, metric)(s, o) == pytest.approx(brute_fpr(metric, s, o), abs=1e-12)
    y, x = np.r_[np.zeros(len(s)), np.ones(len(o))], np.r_[s, o]
    fpr, tpr, _ = sk.roc_curve(y, x, drop_intermediate=False)
    assert dt.fpr95_ood_positive(s, o) == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)], abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(1 - y, -x, drop_intermediate=False)
    assert dt.fpr95_id_positive(s, o) == pytest.approx(fpr[np.argmax(tpr >= 0.95 - 1e-12)], abs=1e-12)


def test_order_statistic_is_taken_in_integers():
    """ceil(.95 n) for every n, without the rounding of .95 (its product with n may land above the integer)."""
    for n in range(1, 400):
        s = np.arange(n, dtype=float)
        assert dt.id_threshold(s) == -(-95 * n // 100) - 1
        assert dt.ood_threshold(s) == n - -(-95 * n // 100)
        assert dt.fpr95_id_positive(s, s) == pytest.approx(-(-95 * n // 100) / n, abs=1e-15)
    assert dt.id_threshold([]) is None and dt.ood_threshold([1.0, np.nan]) is None


def test_conventions_differ_and_ties_are_all_accepted():
    s, o = np.zeros(10), np.ones(10)
    assert dt.auroc(s, o) == 1.0 and dt.fpr95_id_positive(s, o) == 0.0 and dt.fpr95_ood_positive(s, o) == 0.0
    assert dt.auroc(o, s) == 0.0 and dt.fpr95_id_positive(o, s) == 1.0 and dt.fpr95_ood_positive(o, s) == 1.0
    assert dt.auroc(s, s) == 0.5 and dt.fpr95_id_positive(s, s) == 1.0 and dt.fpr95_ood_positive(s, s) == 1.0
    # 40 % of the OOD scores tied with most of ID at the bottom: no threshold above the tie reaches 95 % of OOD
    o = np.r_[np.zeros(40), np.linspace(2, 3, 60)]
    s = np.r_[np.zeros(90), np.full(10, 1.0)]
    assert dt.fpr95_ood_positive(s, o) == 1.0 and dt.fpr95_id_positive(s, o) == 0.4


@pytest.mark.parametrize(("shift", "spread"), [(1.0, 1.0), (2.0, 1.0), (2.0, 2.0), (3.0, 0.5)])
def test_gaussians_have_closed_forms(shift, spread):
    """On the quantiles of N(0, 1) and N(shift, spread) the metrics are the closed forms up to the grid."""
    grid = stats.norm.ppf((np.arange(20000) + 0.5) / 20000)
    s, o = grid, shift + spread * grid
    z = stats.norm.ppf(0.95)
    assert dt.auroc(s, o) == pytest.approx(stats.norm.cdf(shift / math.sqrt(1 + spread**2)), abs=1e-4)
    assert dt.fpr95_id_positive(s, o) == pytest.approx(stats.norm.cdf((z - shift) / spread), abs=2e-4)
    assert dt.fpr95_ood_positive(s, o) == pytest.approx(stats.norm.sf(shift - z * spread), abs=2e-4)
    if spread != 1:
        assert abs(dt.fpr95_id_positive(s, o) - dt.fpr95_ood_positive(s, o)) > 0.01, "the conventions must differ here"


def test_nan_and_empty_are_none_and_infinities_are_ranked():
    good, bad = np.array([0.0, 1.0]), np.array([0.0, np.nan])
    for name in (*dt.RESAMPLED, *dt.POINT_ONLY):
        metric = getattr(dt, name)
        assert metric(good, bad) is None and metric(bad, good) is None
        assert metric(good, good[:0]) is None and metric(good[:0], good) is None
        assert metric(np.array([-np.inf, 0.0]), np.array([1.0, np.inf])) in (0.0, 1.0)
    assert dt.roc_curve(good, bad) is None
    assert dt.ties(bad) == (1, 0.0) and dt.ties([]) == (0, None) and dt.ties([1, 1, 2, 3]) == (3, 0.5)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_weighted_is_the_metric_of_the_repeated_sample(case):
    s, o = drawn(case)
    rng = np.random.default_rng(case[2])
    w_id, w_ood = (rng.integers(0, 4, size=(6, k)).astype(np.uint16) for k in (len(s), len(o)))
    found = {
        "auroc": dt.auroc_weighted(s, o, w_id, w_ood),
        "fpr95_id_positive": dt.fpr95_id_positive_weighted(s, o, w_id, w_ood),
        "fpr95_ood_positive": dt.fpr95_ood_positive_weighted(s, o, w_id, w_ood),
    }
    for b in range(6):
        a, c = np.repeat(s, w_id[b]), np.repeat(o, w_ood[b])
        for name, values in found.items():
            expected = getattr(dt, name)(a, c)
            if expected is None:
                assert np.isnan(values[b])
            else:
                assert values[b] == pytest.approx(expected, abs=1e-12)


def test_weighted_in_blocks_with_large_counts_and_bad_weights(monkeypatch):
    rng = np.random.default_rng(0)
    s, o = rng.normal(size=60), rng.normal(size=50)
    w_id, w_ood = rng.integers(0, 5, (40, 60)), rng.integers(0, 5, (40, 50))
    whole = dt.auroc_weighted(s, o, w_id, w_ood)
    assert np.array_equal(dt.auroc_weighted(s, o, w_id.astype(float), w_ood.astype(np.uint16)), whole)
    # sums beyond 32 bits must not wrap: scaling all counts changes nothing
    np.testing.assert_array_equal(dt.auroc_weighted(s, o, w_id * 13_000, w_ood * 13_000), whole)
    np.testing.assert_array_equal(dt.auroc_weighted(s, o, w_id * 100_000_000, w_ood), whole)
    monkeypatch.setattr(dt, "NUMBERS_AT_ONCE", 300)
    assert np.array_equal(dt.auroc_weighted(s, o, w_id, w_ood), whole)
    for bad in (w_id + 0.5, w_id[:, :5], -1.0 * (w_id + 1)):
        with pytest.raises(ValueError, match="weights"):
            dt.auroc_weighted(s, o, bad, w_ood)
    with pytest.raises(ValueError, match="replicates"):
        dt.auroc_weighted(s, o, w_id, w_ood[:3])
    with pytest.raises(ValueError, match="one number per image"):
        dt.auroc(s[:, None], o)


# ---- intervals


def world(seed: int = 0, n: int = 200) -> tuple[np.ndarray, dict, list, dict]:
    rng = np.random.default_rng(seed)
    sets = {"letters": rng.normal(size=n) + 1, "scrambled": rng.normal(size=n) + 0.5, "science": rng.normal(size=n) + 2}
    sources = {
        "letters": [f"l{i}" for i in range(n)],
        "scrambled": [f"g{i}" for i in range(n)],
        "science": [f"photo{i // 20}" for i in range(n)],
    }
    return rng.normal(size=n), sets, [f"g{i}" for i in range(n)], sources


def table(rows: list[dict]) -> dict:
    return {(r["against"], r["metric"]): r for r in rows}


def test_rows_hold_points_intervals_and_counts():
    s, sets, ids, sources = world()
    means = {"near": ["letters", "scrambled"]}
    rows = dt.detection_with_intervals(s, sets, ids, sources, replicates=300, seed=1, means=means)
    assert rows == dt.detection_with_intervals(s, sets, ids, sources, replicates=300, seed=1, means=means)
    found = table(rows)
    assert len(found) == len(rows) == 4 * 7
    for key, o in sets.items():
        for metric in (*dt.RESAMPLED, *dt.POINT_ONLY):
            row = found[key, metric]
            assert row["value"] == pytest.approx(getattr(dt, metric)(s, o), abs=1e-12)
            assert (row["n_id"], row["n_ood"], row["n_nan_id"], row["n_nan_ood"]) == (200, 200, 0, 0)
            if metric in dt.RESAMPLED:
                assert row["ci_low"] < row["value"] < row["ci_high"] and row["ci_method"] == "cluster_bootstrap"
            else:
                assert row["ci_low"] is None and row["ci_method"] is None
    assert [found[k, "auroc"]["n_clusters"] for k in ("letters", "scrambled", "science")] == [400, 200, 210]
    near = found["near", "auroc"]
    assert near["value"] == pytest.approx(
        np.mean([found[k, "auroc"]["value"] for k in ("letters", "scrambled")]), abs=1e-12
    )
    assert near["n_ood"] == 400 and near["members"] == ["letters", "scrambled"] and near["n_clusters"] == 400
    assert found["letters", "fpr95_id_positive"]["higher_is_better"] is False and near["higher_is_better"] is True
    assert found["letters", "auroc"]["n_distinct"] == 400 and found["letters", "auroc"]["tie_share"] == 0.0


def test_adding_a_set_or_another_score_moves_no_interval():
    s, sets, ids, sources = world()
    few = table(
        dt.detection_with_intervals(
            s, {"letters": sets["letters"]}, ids, {"letters": sources["letters"]}, replicates=200
        )
    )
    all_of_them = table(dt.detection_with_intervals(s, sets, ids, sources, replicates=200))
    assert few["letters", "auroc"] == all_of_them["letters", "auroc"]
    weights = dt.detection_weights(ids, sources, 200, 0)
    again = table(dt.detection_with_intervals(s, sets, ids, sources, weights=weights))
    assert again == all_of_them


def test_interval_of_auroc_agrees_with_delong():
    """Unique sources: the bootstrap's length is that of the normal interval with DeLong's variance."""
    s, sets, ids, sources = world(3, 400)
    o = sets["letters"]
    row = table(dt.detection_with_intervals(s, sets, ids, sources, replicates=2000))["letters", "auroc"]
    wins = (o[:, None] > s[None, :]).astype(float)
    variance = wins.mean(axis=0).var(ddof=1) / len(s) + wins.mean(axis=1).var(ddof=1) / len(o)
    half = stats.norm.ppf(0.975) * math.sqrt(variance)
    np.testing.assert_allclose((row["ci_low"], row["ci_high"]), (row["value"] - half, row["value"] + half), atol=0.004)


def test_mean_over_sets_shares_the_resample_of_the_id_images():
    """Sets whose scores hardly vary: only the ID images move, all sets together, so the mean varies as much as each."""
    rng = np.random.default_rng(0)
    s, ids = rng.normal(size=300), [f"g{i}" for i in range(300)]
    sets = {k: np.full(300, 1.0) for k in "abcd"}
    sources = {k: [f"{k}{i}" for i in range(300)] for k in "abcd"}
    found = table(dt.detection_with_intervals(s, sets, ids, sources, replicates=500, means={"all": list("abcd")}))
    one, mean = found["a", "auroc"], found["all", "auroc"]
    assert (mean["ci_low"], mean["ci_high"]) == pytest.approx((one["ci_low"], one["ci_high"]), abs=1e-12)
    assert mean["ci_high"] - mean["ci_low"] > 0.02


def test_shared_sources_are_resampled_together():
    """OOD images made from the ID images, their scores one higher: resampled together, AUROC hardly moves."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=300) * 5
    ids = [f"g{i}" for i in range(300)]
    paired = table(dt.detection_with_intervals(s, {"o": s + 1}, ids, {"o": ids}, replicates=500))["o", "auroc"]
    apart = table(
        dt.detection_with_intervals(s, {"o": s + 1}, ids, {"o": [f"x{i}" for i in range(300)]}, replicates=500)
    )
    length = [r["ci_high"] - r["ci_low"] for r in (paired, apart["o", "auroc"])]
    assert length[0] < 0.5 * length[1]
    assert (paired["n_clusters"], apart["o", "auroc"]["n_clusters"]) == (300, 600)


def test_nan_scores_null_what_they_enter_and_are_counted():
    s, sets, ids, sources = world()
    sets["letters"][[1, 2]] = np.nan
    means = {"near": ["letters", "scrambled"], "far": ["science"]}
    found = table(dt.detection_with_intervals(s, sets, ids, sources, replicates=50, means=means))
    for key in ("letters", "near"):
        for metric in (*dt.RESAMPLED, *dt.POINT_ONLY):
            row = found[key, metric]
            assert row["value"] is None and row["ci_low"] is None and row["n_nan_ood"] == 2
    assert found["scrambled", "auroc"]["value"] is not None and found["far", "auroc"]["ci_low"] is not None
    s[0] = np.nan
    rows = dt.detection_with_intervals(s, sets, ids, sources, replicates=50, means=means)
    assert all(r["value"] is None and r["ci_high"] is None and r["n_nan_id"] == 1 for r in rows)


def test_areas_under_precision_recall_are_not_averaged_over_unequal_sets():
    s, sets, ids, sources = world()
    sets["letters"], sources["letters"] = sets["letters"][:150], sources["letters"][:150]
    found = table(
        dt.detection_with_intervals(s, sets, ids, sources, replicates=20, means={"near": ["letters", "scrambled"]})
    )
    assert found["near", "ap_out"]["value"] is None and found["near", "auroc"]["value"] is not None
    with pytest.raises(ValueError, match="does not fit the sets"):
        dt.detection_with_intervals(s, sets, ids, sources, replicates=20, means={"near": ["typo"]})


def test_difference_of_two_scores_is_paired():
    s, sets, ids, sources = world()
    rng = np.random.default_rng(9)
    noisy = (s + 0.1 * rng.normal(size=200), {k: o + 0.1 * rng.normal(size=200) for k, o in sets.items()})
    means = {"near": ["letters", "scrambled"]}
    rows = table(dt.detection_difference((s, sets), noisy, ids, sources, replicates=400, means=means))
    single = table(dt.detection_with_intervals(s, sets, ids, sources, replicates=400, means=means))
    for key in ("letters", "near"):
        row = rows[key, "auroc"]
        assert row["ci_high"] - row["ci_low"] < 0.4 * (single[key, "auroc"]["ci_high"] - single[key, "auroc"]["ci_low"])
        assert row["ci_low"] <= row["value"] <= row["ci_high"] and 0 < row["p_value"] <= 1
    assert rows["letters", "auroc"]["value"] == pytest.approx(
        dt.auroc(s, sets["letters"]) - dt.auroc(noisy[0], noisy[1]["letters"]), abs=1e-12
    )
    worse = (rng.normal(size=200), {k: rng.normal(size=200) for k in sets})
    far = table(dt.detection_difference((s, sets), worse, ids, sources, replicates=400))["science", "auroc"]
    assert far["ci_low"] > 0 and far["p_value"] == pytest.approx(2 / 401)
    same = table(dt.detection_difference((s, sets), (s, sets), ids, sources, replicates=50))
    assert all((r["value"], r["ci_low"], r["ci_high"], r["p_value"]) == (0, 0, 0, 1) for r in same.values())


def test_weights_are_those_of_resample_weights():
    _, _, ids, sources = world()
    weights = dt.detection_weights(ids, sources, 10, 4)
    assert np.array_equal(weights[""], resample_weights(ids, 10, 4))
    with pytest.raises(ValueError, match="name"):
        dt.detection_weights(ids, {"": ids}, 10, 4)
