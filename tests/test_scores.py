"""Scores: one contract for all of them, closed forms, and pytorch-ood as the oracle where it has the score."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from windtunnel import registry
from windtunnel.backend import declare_torchvision_operators, torch
from windtunnel.scores.base import Head, Observations, Score, rows_times
from windtunnel.scores.knn import unit

NAMES = registry.names("score")
WIDTH, CLASSES = 24, 6


def linear_head(seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        weight=rng.normal(size=(CLASSES, WIDTH)).astype(np.float32), bias=rng.normal(size=CLASSES).astype(np.float32)
    )


def abet_head(seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        weight=rng.normal(size=(CLASSES, WIDTH)).astype(np.float32),
        cosine=True,
        temperature_weight=rng.normal(size=WIDTH).astype(np.float32) * 0.2,
        temperature_bias=-1.0,
    )


def observed(n: int, head: Head, seed: int, spread: float = 1.0) -> Observations:
    """Features in clusters around the class weights, with the logits the head gives them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    features = np.maximum(head.weight[labels] + spread * rng.normal(size=(n, WIDTH)), 0).astype(np.float32)
    return Observations(logits=head.logits(features).astype(np.float32), features=features, labels=labels)


def made(name: str, **changed) -> tuple[Score, Head, dict, Observations]:
    """A score fitted on 400 rows and 300 further observations; heads as the score needs them."""
    method = registry.load("score", name)
    score = method(**changed)
    head = abet_head() if score.needs_temperature else linear_head()
    return score, head, score.fit(observed(400, head, 1), head), observed(300, head, 2)


@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    score, head, state, test = made(name)
    assert issubclass(type(score), Score) and score.applies_to(head)
    before = [test.logits.copy(), test.features.copy(), {k: v.copy() for k, v in state.items()}]
    values = score.score(test, state, head)
    assert values.shape == (300,) and values.dtype == np.float64 and np.isfinite(values).all()
    assert len(np.unique(values)) > 290, "a score of continuous inputs must not be coarse"
    # pure: inputs and state untouched, a second call gives the same bytes, and so does a second fit
    assert np.array_equal(test.logits, before[0]) and np.array_equal(test.features, before[1])
    assert all(np.array_equal(state[k], v) for k, v in before[2].items())
    assert score.score(test, state, head).tobytes() == values.tobytes()
    again = score.fit(observed(400, head, 1), head)
    assert sorted(again) == sorted(state) and all(again[k].tobytes() == state[k].tobytes() for k in state)
    # batch-invariant to the last bit, so that equal images stay tied
    for rows in (slice(0, 1), slice(7, 10), slice(100, 300)):
        part = Observations(logits=test.logits[rows], features=test.features[rows])
        assert np.array_equal(score.score(part, state, head), values[rows])
    with pytest.raises(FrozenInstanceError):
        score.anything = 1


@pytest.mark.parametrize("name", NAMES)
def test_fit_is_needed_exactly_where_declared(name):
    score, _, state, _ = made(name)
    assert bool(state) == score.needs_fit
    assert all(isinstance(v, np.ndarray) for v in state.values())


@pytest.mark.parametrize("name", NAMES)
def test_nan_rows_are_nan_and_touch_no_other_row(name):
    score, head, state, test = made(name)
    clean = score.score(test, state, head)
    logits, features = test.logits.copy(), test.features.copy()
    logits[[3, 7]], features[3], features[7, 2] = np.nan, np.nan, np.nan
    values = score.score(Observations(logits=logits, features=features), state, head)
    assert np.isnan(values[[3, 7]]).all()
    others = np.setdiff1d(np.arange(300), [3, 7])
    assert np.array_equal(values[others], clean[others])
    everything = Observations(logits=np.full_like(logits, np.nan), features=np.full_like(features, np.nan))
    assert np.isnan(score.score(everything, state, head)).all()


@pytest.mark.parametrize("name", [n for n in NAMES if registry.card("score", n).constants.get("needs_fit")])
def test_nan_in_the_fitting_set_is_named(name):
    score, head, _, _ = made(name)
    train = observed(400, head, 1)
    train.features[[5, 6], 0] = np.nan
    with pytest.raises(ValueError, match="2 of 400"):
        score.fit(train, head)


@pytest.mark.parametrize("name", NAMES)
def test_ties_survive(name):
    score, head, state, test = made(name)
    twice = Observations(logits=np.tile(test.logits, (3, 1)), features=np.tile(test.features, (3, 1)))
    values = score.score(twice, state, head).reshape(3, 300)
    assert np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])


@pytest.mark.parametrize("name", NAMES)
def test_sign_in_distribution_scores_lower(name):
    """Fitted clusters against small features in random directions: flat logits, far from every class."""
    score, head, state, _ = made(name)
    rng = np.random.default_rng(5)
    features = np.abs(rng.normal(size=(300, WIDTH)) * 0.2).astype(np.float32)
    if name == "abet":  # an uncertain image has a high temperature, which makes its logits flat
        features = features + np.maximum(head.temperature_weight, 0) * 40
    if name == "abet_unablated":  # there the factor in front of the logarithm pulls the other way: keep T what it was
        w = head.temperature_weight[:, None]
        features = features - (features @ w + 3.0) * w.T / (w * w).sum()
    out = Observations(logits=head.logits(features).astype(np.float32), features=features)
    inside = score.score(observed(300, head, 6, spread=0.1), state, head)
    outside = score.score(out, state, head)
    assert np.mean(outside[:, None] > inside[None, :]) > 0.9


@pytest.mark.parametrize("name", [n for n in NAMES if not registry.load("score", n).needs_features])
def test_flat_logits_score_higher_than_peaked(name):
    score = registry.load("score", name)()
    head = abet_head()
    logits = np.array([[9.0, 0, 0, 0], [0.0, 0, 0, 0], [1.0, 0, 0, 0]])
    peaked, flat, between = score.score(Observations(logits=logits, features=np.zeros((3, WIDTH))), {}, head)
    assert peaked < between < flat


def test_abet_is_null_without_a_temperature_per_sample():
    global_temperature = Head(weight=np.ones((3, 4)), cosine=True, temperature_bias=-1.0)
    for name in ("abet", "abet_unablated"):
        score = registry.load("score", name)()
        assert score.applies_to(abet_head())
        for head in (linear_head(), global_temperature):
            assert not score.applies_to(head)
            with pytest.raises(ValueError, match="per sample"):
                score.score(Observations(logits=np.zeros((2, 3)), features=np.zeros((2, 4))), {}, head)


# ---- closed forms


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_zero_logits(classes):
    zero = Observations(logits=np.zeros((4, classes), dtype=np.float32), features=np.zeros((4, WIDTH)))
    head = abet_head()
    for t in (0.5, 1.0, 100.0):
        values = registry.load("score", "energy")(temperature=t).score(zero, {}, head)
        np.testing.assert_allclose(values, -t * np.log(classes), atol=1e-12)
    np.testing.assert_allclose(registry.load("score", "abet")().score(zero, {}, head), -np.log(classes), atol=1e-12)
    np.testing.assert_allclose(registry.load("score", "entropy")().score(zero, {}, head), np.log(classes), atol=1e-12)
    np.testing.assert_allclose(registry.load("score", "msp")().score(zero, {}, head), 1 - 1 / classes, atol=1e-12)
    assert np.array_equal(registry.load("score", "maxlogit")().score(zero, {}, head), np.zeros(4))


def test_saturated_logits_keep_their_order_and_value():
    gaps = np.array([0.0, 1.0, 40.0, 80.0, 200.0, 700.0])
    seen = Observations(logits=np.stack([gaps, np.zeros(6)], axis=1), features=np.zeros((6, 1)))
    head = linear_head()
    msp = registry.load("score", "msp")().score(seen, {}, head)
    np.testing.assert_allclose(msp, 1 / (1 + np.exp(gaps)), rtol=1e-14)  # 1 - sigmoid(gap)
    entropy = registry.load("score", "entropy")().score(seen, {}, head)
    p = 1 / (1 + np.exp(gaps))
    np.testing.assert_allclose(entropy, p * gaps + np.log1p(np.exp(-gaps)), rtol=1e-12)
    assert (np.diff(msp) < 0).all() and (np.diff(entropy) < 0).all()
    huge = Observations(logits=np.array([[1e30, -1e30, 0.0], [3e38, 3e38, 0.0], [0.0, -np.inf, 1.0]]), features=None)
    for name in ("msp", "maxlogit", "energy", "entropy"):
        assert np.isfinite(registry.load("score", name)().score(huge, {}, head)).all(), name


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, (5, 7), elements=st.floats(-60, 60)), st.floats(-1000, 1000))
def test_msp_and_entropy_ignore_a_constant_and_energy_moves_by_it(logits, shift):
    head = linear_head()
    here, there = (Observations(logits=z, features=None) for z in (logits, logits + shift))
    for name, change in (("msp", 0), ("entropy", 0), ("energy", -shift), ("maxlogit", -shift)):
        score = registry.load("score", name)()
        np.testing.assert_allclose(score.score(there, {}, head), score.score(here, {}, head) + change, atol=1e-9)


def test_abet_formulas_from_the_definition():
    head = abet_head(3)
    test = observed(50, head, 4)
    h, w = test.features.astype(np.float64), head.weight.astype(np.float64)
    cosine = (h @ w.T) / np.outer(np.linalg.norm(h, axis=1) + 1e-4, np.linalg.norm(w, axis=1) + 1e-4)
    t = 1 / (1 + np.exp(-(h @ head.temperature_weight.astype(np.float64) - 1.0))) + 1e-12
    assert t.min() > 0 and t.max() < 1
    z = cosine / t[:, None]
    exact = Observations(logits=z, features=test.features)
    log_sum = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    np.testing.assert_allclose(registry.load("score", "abet")().score(exact, {}, head), -log_sum, rtol=1e-12)
    unablated = registry.load("score", "abet_unablated")().score(exact, {}, head)
    np.testing.assert_allclose(unablated, -t * log_sum, rtol=1e-10)
    # on such a head the plain energy is AbeT, number for number (the module of energy says so)
    energy = registry.load("score", "energy")().score(exact, {}, head)
    assert np.array_equal(energy, registry.load("score", "abet")().score(exact, {}, head))
    # ReAct clips what the class head sees, never what the temperature sees
    react = registry.load("score", "react_energy")()
    state = react.fit(test, head)
    c = np.minimum(h, np.percentile(h, 90))
    cosine_c = (c @ w.T) / np.outer(np.linalg.norm(c, axis=1) + 1e-4, np.linalg.norm(w, axis=1) + 1e-4)
    expected = -np.log(np.exp(cosine_c / t[:, None]).sum(1))
    np.testing.assert_allclose(react.score(test, state, head), expected, rtol=1e-9)


def test_head_with_one_global_temperature_and_extreme_temperatures():
    head = Head(weight=np.eye(3), temperature_bias=0.0)
    assert np.array_equal(head.temperature(np.ones((2, 3))), np.full(2, 0.5 + 1e-12))
    np.testing.assert_allclose(head.logits(np.eye(3)), np.eye(3) / (0.5 + 1e-12))
    steep = Head(weight=np.eye(3), temperature_weight=np.array([1000.0, 0, 0]), temperature_bias=0.0)
    with np.errstate(all="raise"):
        low, high = steep.temperature(np.array([[-5.0, 0, 0], [5.0, 0, 0]]))
    assert low == 1e-12 and high == pytest.approx(1.0)


@pytest.mark.parametrize("columns", [1, 2, 5, 33])
def test_rows_times_is_a_product_whose_rows_are_independent(columns):
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(600, 37)).astype(np.float32), rng.normal(size=(37, columns))
    whole = rows_times(rows, matrix)
    np.testing.assert_allclose(whole, rows.astype(np.float64) @ matrix, rtol=1e-12, atol=1e-12)
    order = rng.permutation(600)
    assert np.array_equal(rows_times(rows[order], matrix), whole[order])
    assert np.array_equal(np.concatenate([rows_times(rows[i : i + 1], matrix) for i in range(20)]), whole[:20])
    assert rows_times(rows[:0], matrix).shape == (0, columns)


# ---- features: closed forms and bad settings


def test_mahalanobis_of_a_known_gaussian_is_chi_square():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(5, 5))
    labels = np.repeat([0, 3], 4000)
    centres = np.where(labels[:, None] == 0, -100.0, 100.0)
    train = Observations(np.zeros((8000, 2)), rng.normal(size=(8000, 5)) @ mixing + centres, labels)
    score = registry.load("score", "mahalanobis")()
    state = score.fit(train, linear_head())
    assert state["means"].shape == (2, 5), "only the classes that occur have a mean"
    test = Observations(np.zeros((4000, 2)), rng.normal(size=(4000, 5)) @ mixing + 100.0)
    values = score.score(test, state, linear_head())
    assert abs(values.mean() - 5) < 5 * np.sqrt(10 / 4000) + 0.05  # chi-square with 5 degrees: mean 5, variance 10


def test_mahalanobis_survives_dead_units_and_needs_labels():
    head = linear_head()
    train, test = observed(400, head, 1), observed(20, head, 2)
    score = registry.load("score", "mahalanobis")()
    alive = score.score(test, score.fit(train, head), head)
    dead = [np.concatenate([o.features, np.zeros((len(o.features), 3), np.float32)], axis=1) for o in (train, test)]
    state = score.fit(Observations(train.logits, dead[0], train.labels), head)
    assert state["whitening"].shape == (WIDTH + 3, WIDTH)
    np.testing.assert_allclose(score.score(Observations(test.logits, dead[1]), state, head), alive, rtol=1e-9)
    with pytest.raises(ValueError, match="no labels"):
        score.fit(Observations(train.logits, train.features), head)
    constant = Observations(train.logits, np.ones_like(train.features), train.labels)
    with pytest.raises(ValueError, match="do not vary"):
        score.fit(constant, head)
    # a ridge shrinks distances: (lambda + r)^-1 < lambda^-1 in every direction
    ridged = registry.load("score", "mahalanobis")(ridge=0.1)
    assert (ridged.score(test, ridged.fit(train, head), head) < alive).all()


@pytest.mark.parametrize("k", [1, 5, 50])
def test_knn_equals_all_distances_sorted_across_blocks(k, monkeypatch):
    from windtunnel.scores import knn

    head = linear_head()
    train, test = observed(400, head, 1), observed(70, head, 2)
    a, b = unit(test.features), unit(train.features)
    expected = np.sort(np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)), axis=1)[:, k - 1]
    score = knn.Knn(k=k)
    whole = score.score(test, score.fit(train, head), head)
    np.testing.assert_allclose(whole, expected, rtol=1e-13, atol=1e-15)
    monkeypatch.setattr(knn, "BANK_AT_ONCE", 31)
    monkeypatch.setattr(knn, "QUERIES_AT_ONCE", 9)
    monkeypatch.setattr(knn, "NUMBERS_AT_ONCE", 1000)
    assert np.array_equal(score.score(test, score.fit(train, head), head), whole)


def test_knn_of_a_member_of_the_bank_is_exactly_zero_and_k_is_checked():
    head = linear_head()
    train = observed(100, head, 1)
    score = registry.load("score", "knn")(k=1)
    assert np.array_equal(score.score(train, score.fit(train, head), head), np.zeros(100))
    for k in (0, 101):
        with pytest.raises(ValueError, match="between 1 and the 100"):
            registry.load("score", "knn")(k=k).fit(train, head)


def test_vim_dimension_rule_and_residual():
    vim = registry.load("score", "vim")
    assert [vim().principal(w) for w in (4096, 2048, 2047, 768, 513, 512, 64, 24)] == [
        1000, 1000, 512, 512, 512, 256, 32, 12,
    ]  # fmt: skip
    for bad in (0, 24, 30):
        with pytest.raises(ValueError, match="no residual"):
            vim(dimension=bad).principal(24)
    # features inside the principal space get the energy alone, a step outside adds alpha times its length
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    spread = np.where(np.arange(WIDTH) < 10, 10.0, 0.1)
    head = Head(weight=rng.normal(size=(CLASSES, WIDTH)))
    h = rng.normal(size=(5000, WIDTH)) * spread @ basis.T
    score = vim(dimension=10)
    state = score.fit(Observations(head.logits(h), h), head)
    v = np.linalg.eigh(h.T @ h)[1][:, 0]  # the direction of least variance
    zero = np.zeros((3, WIDTH)) + np.array([[0.0], [1.0], [2.0]]) * v
    values = score.score(Observations(np.zeros((3, CLASSES)), zero), state, head)
    np.testing.assert_allclose(values, float(state["alpha"]) * np.array([0, 1, 2]) - np.log(CLASSES), rtol=1e-9)


# ---- pytorch-ood as the oracle (its convention is the same: higher = more out-of-distribution)


@pytest.fixture(scope="module")
def oracle():
    """pytorch-ood in double precision, with the observations its detectors are given."""
    declare_torchvision_operators()
    detectors = pytest.importorskip("pytorch_ood.detector")
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    head = linear_head(7)
    train, test = observed(600, head, 8), observed(200, head, 9)
    exact = [Observations(head.logits(o.features), o.features, o.labels) for o in (train, test)]
    yield detectors, head, *exact
    torch.set_default_dtype(default)


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def test_logit_scores_equal_pytorch_ood(oracle):
    detectors, head, _, test = oracle
    z = tensor(test.logits)
    ours = {n: registry.load("score", n)().score(test, {}, head) for n in ("msp", "maxlogit", "energy", "entropy")}
    np.testing.assert_allclose(ours["msp"], 1 + detectors.MaxSoftmax.score(z).numpy(), atol=1e-12)
    np.testing.assert_allclose(ours["maxlogit"], detectors.MaxLogit.score(z).numpy(), atol=1e-12)
    np.testing.assert_allclose(ours["energy"], detectors.EnergyBased.score(z).numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours["entropy"], detectors.Entropy.score(z).numpy(), atol=1e-5)  # it clips p at 1e-7
    warm = registry.load("score", "energy")(temperature=2.5).score(test, {}, head)
    np.testing.assert_allclose(warm, detectors.EnergyBased.score(z, t=2.5).numpy(), rtol=1e-12)
    soft = registry.load("score", "msp")(temperature=2.5).score(test, {}, head)
    np.testing.assert_allclose(soft, 1 + detectors.MaxSoftmax.score(z, t=2.5).numpy(), atol=1e-12)


def test_mahalanobis_equals_pytorch_ood(oracle):
    detectors, head, train, test = oracle
    theirs = detectors.Mahalanobis(None).fit_features(tensor(train.features), torch.from_numpy(train.labels))
    score = registry.load("score", "mahalanobis")()
    ours = score.score(test, score.fit(train, head), head)
    # theirs is half the distance under the scatter matrix, which is N times the covariance
    expected = 2 * len(train.features) * theirs.predict_features(tensor(test.features)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 50])
def test_knn_equals_pytorch_ood(oracle, k):
    detectors, head, train, test = oracle
    theirs = detectors.KNN(None, k=k).fit_features(tensor(train.features), torch.from_numpy(train.labels))
    score = registry.load("score", "knn")(k=k)
    ours = score.score(test, score.fit(train, head), head)
    np.testing.assert_allclose(ours, theirs.predict_features(tensor(test.features)).numpy(), rtol=1e-5)


@pytest.mark.parametrize("dimension", [5, None])
def test_vim_equals_pytorch_ood(oracle, dimension):
    detectors, head, train, test = oracle
    theirs = detectors.ViM(None, d=dimension or WIDTH + 1, w=tensor(head.weight), b=tensor(head.bias))
    theirs.fit_features(tensor(train.features), torch.from_numpy(train.labels))
    score = registry.load("score", "vim")(dimension=dimension)
    ours = score.score(test, score.fit(train, head), head)
    expected = theirs.predict_features(tensor(test.features)).numpy()  # it computes in float32
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("percentile", [90.0, 60.0])
def test_react_equals_pytorch_ood(oracle, percentile):
    detectors, head, train, test = oracle
    w, b = tensor(head.weight), tensor(head.bias)
    theirs = detectors.ReAct(lambda x: x, lambda h: h @ w.T + b, percentile=percentile / 100)
    theirs.fit_feature_maps(tensor(train.features), torch.from_numpy(train.labels))
    score = registry.load("score", "react_energy")(percentile=percentile)
    ours = score.score(test, score.fit(train, head), head)
    np.testing.assert_allclose(ours, theirs.predict_feature_maps(tensor(test.features)).numpy(), rtol=1e-9)
    assert not np.allclose(ours, registry.load("score", "energy")().score(test, {}, head)), "clipping must matter here"


# ---- catalogue


def test_catalogue_names_methods_and_their_settings():
    text = (registry.PACKAGE / "catalogue" / "scores.yaml").read_text()
    entries = yaml.safe_load(text)["scores"]
    assert {e["method"] for e in entries.values()} == set(NAMES)
    assert len({e["label"] for e in entries.values()}) == len(entries)
    for name, entry in entries.items():
        assert set(entry) == {"method", "settings", "label"} and "_" not in name
        method = registry.load("score", entry["method"])
        assert (
            set(entry["settings"])
            == {f.name for f in fields(method)}
            == set(registry.card("score", entry["method"]).settings)
        )
        method(**entry["settings"])


def test_scores_and_metrics_never_import_torch():
    for folder in ("scores", "metrics"):
        for path in (registry.PACKAGE / folder).glob("*.py"):
            text = path.read_text()
            assert "import torch" not in text and "from torch" not in text and "backend" not in text, path
