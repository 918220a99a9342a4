"""Certificates: bounds against scipy and by definition, error rates computed exactly, a linear classifier whose radius
is known, draws that know of no neighbour, an attack that must fail inside a radius and succeed outside, one workflow
run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from workflow import Run

import windtunnel
from windtunnel.backend import torch
from windtunnel.certify import smoothing
from windtunnel.certify.adversary import attack_certificates
from windtunnel.certify.sampling import CERTIFY, CHOOSE, Smoothed
from windtunnel.certify.smoothing import asked_radius, certify, largest_radius, lower_bound, upper_bound
from windtunnel.defenses.base import Defense, Purified
from windtunnel.defenses.random_noise import RandomNoise
from windtunnel.engine import Pipeline
from windtunnel.stages import summarise_certified

SHAPE = (3, 4, 4)
LOOKS = (100, 300, 1000)


# ----------------------------------------------------------------------------------------------------------- the bounds


@pytest.mark.parametrize(("agreeing", "draws"), [(1, 1), (3, 10), (73, 100), (99, 100), (100, 100), (740, 1000)])
@pytest.mark.parametrize("level", [0.05, 0.001])
def test_bounds_are_one_sided_clopper_pearson(agreeing: int, draws: int, level: float) -> None:
    low = lower_bound(agreeing, draws, level)
    two_sided = stats.binomtest(agreeing, draws).proportion_ci(1 - 2 * level, method="exact")
    assert low == pytest.approx(two_sided.low, rel=1e-9)
    assert upper_bound(agreeing, draws, level) == pytest.approx(two_sided.high, rel=1e-9)
    assert stats.binom.sf(agreeing - 1, draws, low) == pytest.approx(level, rel=1e-6)  # by definition


def test_closed_forms_at_the_ends() -> None:
    assert lower_bound(1000, 1000, 0.001) == 0.001 ** (1 / 1000)
    assert lower_bound(0, 50, 0.001) == 0.0
    assert upper_bound(0, 50, 0.01) == 1 - 0.01 ** (1 / 50)
    for wrong in ((3, 2, 0.1), (-1, 2, 0.1), (0, 0, 0.1), (1, 2, 0.0)):
        with pytest.raises(ValueError, match="draws|level"):
            lower_bound(*wrong)


@pytest.mark.parametrize("probability", [0.5, 0.77, 0.95])
def test_the_bound_exceeds_the_truth_with_at_most_its_level(probability: float) -> None:
    counts = np.arange(201)
    above = np.array([lower_bound(int(k), 200, 0.01) > probability for k in counts])
    assert 0 < stats.binom.pmf(counts[above], 200, probability).sum() <= 0.01


def test_the_largest_radii_of_the_paper() -> None:
    # n = 100,000, alpha = .001: the largest radii of the paper's files, to their three digits
    for sigma, radius in ((0.12, 0.457), (0.25, 0.953), (0.5, 1.91), (1.0, 3.81)):
        assert largest_radius(100_000, 0.001, sigma) == pytest.approx(radius, abs=0.005)
    assert largest_radius(100, 0.001, 1.0) == pytest.approx(1.5, abs=0.005)
    assert largest_radius(9, 0.001, 1.0) is None and largest_radius(10, 0.001, 1.0) is not None


def test_a_radius_is_that_of_the_normal_distribution_and_none_up_to_a_half() -> None:
    assert smoothing.radius_of(0.5, 1.0) is None and smoothing.radius_of(0.2, 1.0) is None
    assert smoothing.radius_of(stats.norm.cdf(1.3), 0.25) == pytest.approx(1.3 * 0.25)
    assert smoothing.probability_within(0.3, 0.25) == pytest.approx(stats.norm.cdf(0.3 / 0.25))


def test_predict_is_the_two_sided_binomial_test_of_the_two_leading_classes() -> None:
    assert smoothing.predict(np.array([5, 0, 90, 5]), 0.001) == 2
    assert smoothing.predict(np.array([48, 52]), 0.05) is None
    for first in range(50, 101):
        votes = np.array([100 - first, first, 30])
        expected = None if stats.binomtest(first, 100).pvalue > 0.05 else 1
        assert smoothing.predict(votes, 0.05) == expected
    assert smoothing.predict(np.array([10, 0, 0]), 0.01) == 0 and smoothing.predict(np.zeros(3, int), 0.01) is None
    assert smoothing.choose(np.array([2, 7, 7])) == 1 and smoothing.choose(np.zeros(4, int)) is None


# ------------------------------------------------------------------------------------------------- fixed and sequential


def ever_above(probability: float, looks: tuple[int, ...], level: float, truth: float) -> float:
    """Exactly: P(some look's lower bound exceeds ``truth``) for draws that agree with ``probability``."""
    alive, claimed, seen = np.array([1.0]), 0.0, 0
    for look in looks:
        step = stats.binom.pmf(np.arange(look - seen + 1), look - seen, probability)
        alive, seen = np.convolve(alive, step), look
        above = np.array([lower_bound(k, look, level) > truth for k in range(look + 1)])
        claimed += alive[above].sum()
        alive = np.where(above, 0.0, alive)
    return float(claimed)


def test_naive_looking_certifies_what_it_must_not_and_declared_looks_do_not() -> None:
    every_ten = tuple(range(10, 1001, 10))
    assert ever_above(0.5, every_ten, 0.05, 0.5) == pytest.approx(0.27, abs=0.02)
    assert ever_above(0.5, every_ten, 0.001, 0.5) == pytest.approx(0.010, abs=0.002)
    for truth in (0.5, 0.8, 0.97):
        for alpha in (0.05, 0.001):
            assert 0 < ever_above(truth, LOOKS, alpha / 3, truth) <= alpha
    assert ever_above(0.8, LOOKS, 0.05, 0.8) > 0.05, "the test cannot tell the corrected level from the naive one"


@pytest.mark.parametrize("truth", [0.5, 0.8])
def test_the_procedure_itself_errs_at_most_at_its_rate(truth: float) -> None:
    rng, alpha, sigma, runs = np.random.default_rng(0), 0.05, 1.0, 4000
    wrong = 0
    for _ in range(runs):
        found = certify(
            3, lambda m: int(rng.binomial(m, truth)), draws=1000, alpha=alpha, sigma=sigma, looks=LOOKS
        )  # fmt: skip
        exact = smoothing.radius_of(truth, sigma) or 0.0
        wrong += found.radius is not None and found.radius > exact
    assert 0 < wrong <= stats.binom.ppf(0.999, runs, alpha)


def agreeing(*counts: int) -> Callable[[int], int]:
    """The answers of a scripted sequence of looks."""
    answers = iter(counts)
    return lambda m: next(answers)


def test_when_it_stops() -> None:
    settings: dict[str, Any] = {"draws": 1000, "alpha": 0.001, "sigma": 0.5, "looks": LOOKS}
    asked = asked_radius(1000, 0.001, 0.5, LOOKS)
    assert asked == largest_radius(100, 0.001 / 3, 0.5)
    early = certify(7, agreeing(100), **settings)
    assert (early.predicted, early.radius, early.n_used, early.agreeing) == (7, asked, 100, 100)
    hopeless = certify(7, agreeing(20), **settings)
    assert (hopeless.predicted, hopeless.radius, hopeless.n_used, hopeless.chosen) == (None, None, 100, 7)
    second = certify(7, agreeing(99, 200), **settings)
    assert (second.radius, second.n_used) == (asked, 300), "more draws never certify beyond what was asked"
    last = certify(7, agreeing(80, 150, 530), **settings)
    assert last.n_used == 1000
    best = max(lower_bound(80, 100, 1e-3 / 3), lower_bound(230, 300, 1e-3 / 3), lower_bound(760, 1000, 1e-3 / 3))
    assert last.radius == pytest.approx(0.5 * stats.norm.ppf(best))
    torn = certify(7, agreeing(75, 20), **settings)
    assert (torn.radius, torn.n_used) == (None, 300), "contradicting looks claim nothing"
    fixed = certify(7, agreeing(1000), draws=1000, alpha=0.001, sigma=0.5)
    assert fixed.radius == largest_radius(1000, 0.001, 0.5) and fixed.n_used == 1000
    nothing = certify(None, agreeing(), **settings)
    assert (nothing.predicted, nothing.n_used) == (None, 0)


def test_few_draws_always_abstain() -> None:
    found = certify(0, agreeing(5), draws=5, alpha=0.001, sigma=1.0)
    assert found.predicted is None and asked_radius(5, 0.001, 1.0) is None
    # a first look that can certify nothing does not take the others' reach away
    assert asked_radius(300, 0.001, 1.0, (5, 300)) == largest_radius(300, 0.0005, 1.0)


def test_an_impossible_radius_is_refused() -> None:
    asked = largest_radius(1000, 0.001, 0.25)
    assert asked is not None
    smoothing.check_radii([None, 0.1, asked], 1000, 0.001, 0.25, ())
    with pytest.raises(smoothing.ImpossibleRadius, match="at most"):
        smoothing.check_radii([asked * 1.001], 1000, 0.001, 0.25, ())
    with pytest.raises(smoothing.ImpossibleRadius, match="at most"):
        smoothing.check_radii([asked], 1000, 0.001, 0.25, LOOKS)
    with pytest.raises(smoothing.ImpossibleRadius, match="none"):
        smoothing.check_radii([0.1], 5, 0.001, 0.25, ())


# -------------------------------------------------------------------------------------------------- a linear classifier


class Linear(torch.nn.Module):
    """Class 1 where w x + b > 0: smoothed, the same classes, and the exact radius |w x + b| / |w|."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.w = rng.normal(size=SHAPE).astype(np.float32)
        self.register_buffer("weight", torch.from_numpy(self.w))
        self.b = -float(self.w.sum()) / 2
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x * self.weight).flatten(1).sum(1) + self.b
        return torch.stack([-z, z], dim=1)

    def exact(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(class [N], radius [N])."""
        z = (images.astype(np.float64) * self.w).reshape(len(images), -1).sum(1) + self.b
        return (z > 0).astype(int), np.abs(z) / np.sqrt((self.w.astype(np.float64) ** 2).sum())


def around_the_middle(n: int, seed: int = 1, spread: float = 0.1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(n, *SHAPE))
    return np.clip(0.5 + spread * noise, 0, 1).astype(np.float32)


def test_a_linear_classifier_is_never_certified_beyond_its_radius_and_nearly_reaches_it() -> None:
    model, images = Linear(), around_the_middle(14)
    images = images[model.exact(images)[1] > 0.03]
    classes, radii = model.exact(images)
    smoothed = Smoothed(Pipeline(model), sigma=0.25, batch_size=5000)
    found = [smoothed.certify(x, i, choose_draws=2000, draws=20_000, alpha=1e-6) for i, x in enumerate(images)]
    assert [f.predicted for f in found] == classes.tolist()
    ratio = np.array([f.radius for f in found]) / radii
    assert len(images) > 5 and (ratio <= 1).all()
    assert (ratio[radii > 0.1] > 0.8).all() and ratio.max() > 0.9
    few = [smoothed.certify(x, i, choose_draws=2000, draws=200, alpha=1e-6).radius or 0.0 for i, x in enumerate(images)]
    assert np.mean(few / radii) < ratio.mean(), "more draws do not make it tighter"


def test_wrong_certificates_are_as_rare_as_alpha_says() -> None:
    model, images = Linear(), around_the_middle(400)
    classes, radii = model.exact(images)
    smoothed = Smoothed(Pipeline(model), sigma=0.1)
    for looks in ((), (50, 100)):
        found = [
            smoothed.certify(x, i, choose_draws=20, draws=100, alpha=0.1, looks=looks) for i, x in enumerate(images)
        ]
        wrong = [
            f.predicted is not None and (f.predicted != c or f.radius > r)
            for f, c, r in zip(found, classes, radii, strict=True)
        ]
        assert 0 < sum(wrong) <= stats.binom.ppf(0.999, len(images), 0.1)


# ------------------------------------------------------------------------------------------------------------ the draws


def test_a_sample_does_not_know_of_batches_and_purposes_have_their_own_noise() -> None:
    model, image = Linear(), around_the_middle(1, spread=0.02)[0]
    votes = {
        size: Smoothed(Pipeline(model), sigma=0.5, batch_size=size).votes(image, "a", CERTIFY).more(300)
        for size in (7, 250)
    }
    assert votes[7].tolist() == votes[250].tolist() and votes[7].min() > 20
    smoothed = Smoothed(Pipeline(model), sigma=0.5)
    streams = [(s, p, k) for s in ("a", "b") for p in (CHOOSE, CERTIFY) for k in (0, 1)]
    drawn = [Smoothed(Pipeline(model), sigma=0.5, seed=k).stream(s, p).normal(4, 3) for s, p, k in streams]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert torch.equal(smoothed.stream("a", CERTIFY).normal(4, 3), drawn[streams.index(("a", CERTIFY, 0))])


def test_looks_read_the_stream_of_the_fixed_procedure() -> None:
    model, image = Linear(), around_the_middle(1, spread=0.02)[0]
    smoothed = Smoothed(Pipeline(model), sigma=0.5)
    fixed = smoothed.certify(image, "a", choose_draws=50, draws=300, alpha=0.05)
    looked = smoothed.certify(image, "a", choose_draws=50, draws=300, alpha=0.05, looks=(100, 300))
    assert looked.n_used == 300 and looked.agreeing == fixed.agreeing
    vote = smoothed.votes(image, "a", CERTIFY)
    parts = [vote.more(m) for m in (100, 200)]
    assert sum(parts).tolist() == vote.counts.tolist() and vote.counts[fixed.chosen] == fixed.agreeing


class Watching(torch.nn.Module):
    """Remembers the range of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append((float(x.min()), float(x.max())))
        return torch.stack([x.flatten(1).mean(1), 1 - x.flatten(1).mean(1)], dim=1)


class Strict(Defense):
    """Identity that refuses images outside [0, 1]."""

    def purify(self, images: np.ndarray) -> Purified:
        assert images.min() >= 0 and images.max() <= 1
        return Purified(images)


def test_noise_is_clipped_before_a_defense_and_nowhere_else() -> None:
    image = np.full(SHAPE, 0.5, dtype=np.float32)
    bare, behind = Watching(), Watching()
    Smoothed(Pipeline(bare), sigma=0.5).votes(image, "a", CHOOSE).more(50)
    assert bare.seen[0][0] < -0.5 and bare.seen[0][1] > 1.5
    Smoothed(Pipeline(behind, defense=Strict(), rounds=2), sigma=0.5).votes(image, "a", CHOOSE).more(50)
    assert behind.seen == [(0.0, 1.0)]


def test_a_defense_with_dice_and_an_unguarded_model_are_refused() -> None:
    with pytest.raises(ValueError, match="dice"):
        Smoothed(Pipeline(Linear(), defense=RandomNoise(sigma=10)), sigma=0.5)
    with pytest.raises(RuntimeError, match="train mode"):
        Smoothed(Pipeline(Linear().train()), sigma=0.5)


class Sometimes(Linear):
    """NaN wherever the first pixel is above its mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lost = x[:, 0, 0, 0] > 0.5
        return torch.where(lost[:, None], torch.nan, super().forward(x))


def test_an_answer_that_is_not_finite_is_no_vote() -> None:
    model = Sometimes()
    far = np.full(SHAPE, 0.5, dtype=np.float32) + 0.3 * model.w / np.abs(model.w).max()
    far[0, 0, 0] = 0.5
    found = Smoothed(Pipeline(model), sigma=0.05).certify(far, "a", choose_draws=50, draws=400, alpha=0.05)
    assert found.chosen == 1 and 150 < found.agreeing < 250 and found.predicted is None
    far[0, 0, 0] = 5.0
    lost = Smoothed(Pipeline(model), sigma=0.05).certify(far, "a", choose_draws=50, draws=400, alpha=0.05)
    assert (lost.chosen, lost.predicted, lost.n_used) == (None, None, 0)


# ---------------------------------------------------------------------------------------------- attacks on certificates


def test_an_attack_on_a_linear_classifier_breaks_past_the_exact_radius_and_never_inside_the_certified_one() -> None:
    model, images = Linear(), around_the_middle(6, spread=0.05)
    classes, radii = model.exact(images)
    smoothed = Smoothed(Pipeline(model), sigma=0.1)
    found = [smoothed.certify(x, i, choose_draws=50, draws=1000, alpha=0.001) for i, x in enumerate(images)]
    kept = [i for i, f in enumerate(found) if f.radius is not None]
    certified = [found[i].radius for i in kept]
    assert len(kept) >= 4
    common: dict[str, Any] = {"eot": 8, "draws": 500}
    inside = attack_certificates(smoothed, images[kept], classes[kept], certified, kept, share=0.9, **common)
    np.testing.assert_allclose(inside.distances, 0.9 * np.array(certified), rtol=1e-4)
    assert not inside.broken.any()
    outside = attack_certificates(smoothed, images[kept], classes[kept], radii[kept] + 0.1, kept, share=1.0, **common)
    assert outside.broken.all() and (outside.images >= 0).all() and (outside.images <= 1).all()


@pytest.mark.parametrize("name", ["digits-cnn", "digits-at"])
def test_no_attack_below_a_certified_radius_succeeds_on_a_real_model(name: str) -> None:
    from windtunnel import images
    from windtunnel.attacks.pgd import PGD
    from windtunnel.models.load import load_model
    from windtunnel.stages.images import subset
    from windtunnel.stages.purify import nchw

    chosen = subset(images.build("photodigits", "test"), 4)
    clean, ids = nchw(chosen.images), chosen.sample_ids
    smoothed = Smoothed(Pipeline(load_model(Path("resources/models") / name)), sigma=0.25)
    found = [smoothed.certify(x, i, choose_draws=30, draws=200, alpha=0.01) for x, i in zip(clean, ids, strict=True)]
    kept = [i for i, f in enumerate(found) if f.radius is not None]
    assert len(kept) >= 2
    arguments = (clean[kept], [found[i].predicted for i in kept], [found[i].radius for i in kept])
    settings: dict[str, Any] = {"attack": PGD(steps=6), "eot": 8, "draws": 100, "alpha": 0.01}
    below = attack_certificates(smoothed, *arguments, [ids[i] for i in kept], share=0.9, **settings)
    assert not below.broken.any()
    beyond = attack_certificates(smoothed, *arguments, [ids[i] for i in kept], share=6.0, **settings)
    assert beyond.broken.any(), "an attack that never succeeds shows nothing"


# -------------------------------------------------------------------------------------------------------- the summaries


def test_certified_accuracy_by_hand() -> None:
    import pandas as pd

    frame = pd.DataFrame({
        "sample_id": list("abcd"), "source_id": list("abcd"), "label": [0, 1, 2, 3], "predicted": [0, 1, 9, None],
        "radius": [0.10, 0.30, 0.20, None], "correct": [True, True, False, False], "chosen": [0, 1, 9, 3],
        "agreeing": [90, 99, 95, 50], "n_used": [100, 100, 300, 400],
    })  # fmt: skip
    rows = summarise_certified.accuracy_rows(frame, {"largest_radius": 0.31})
    curve = {r["radius"]: r["value"] for r in rows if r["metric"] == "certified_accuracy"}
    expected = [0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.0]
    assert list(curve) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35])
    assert list(curve.values()) == expected
    others = {r["metric"]: r["value"] for r in rows if r["radius"] is None}
    assert others == {
        "smoothed_accuracy": 0.75, "abstained": 0.25, "average_certified_radius": pytest.approx(0.1),
        "draws_used": 225.0,
    }  # fmt: skip
    assert {r["ci_method"] for r in rows if r["metric"] == "certified_accuracy"} == {"wilson"}
    assert summarise_certified.radii_of(None) == [0.0, 0.05]


BLOCK = {"images": "photodigits.test", "n": 7, "models": "digits-cnn", "sigmas": 0.12, "choose_draws": 20}
CONFIG: dict[str, Any] = {
    "name": "certified",
    "replicates": 100,
    "fit_on": "fit",
    "certify_shards": 2,
    "blocks": [{"images": "photodigits.test", "n": 8, "models": "digits-cnn"}],
    "certified": [
        {**BLOCK, "draws": 100, "defenses": ["none", "gaussian-1"]},
        {**BLOCK, "draws": 100, "looks": [40, 100]},
    ],
}


@pytest.mark.workflow
def test_certificates_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path).configure(CONFIG)
    run.snakemake(
        "results/tables/printed/index.json", "results/figures/certified.svg", "results/tables/certified.parquet"
    )
    found = windtunnel.load(run.folder / "results", "certified")
    assert len(found) == 3 * 7 and set(found["mode"]) == {"fixed", "sequential"}
    assert (found["radius"].isna() == found["predicted"].isna()).all()
    assert (found["radius"].dropna() <= found["largest_radius"][found["radius"].notna()]).all()
    assert not found["correct"][found["predicted"].isna()].any()
    fixed = found[(found["mode"] == "fixed") & (found["defense"] == "none")].set_index("sample_id")
    assert (fixed["n_used"] == 100).all() and fixed["correct"].sum() >= 4
    looked = found[found["mode"] == "sequential"].set_index("sample_id")
    assert set(looked["n_used"]) <= {40, 100} and (looked["n_used"] == 40).any()
    assert (looked["chosen"] == fixed["chosen"]).all(), "both procedures choose by the same draws"
    accuracy = windtunnel.load(run.folder / "results", "certified_accuracy")
    at_zero = accuracy[(accuracy["metric"] == "certified_accuracy") & (accuracy["radius"] == 0)]
    assert len(at_zero) == 3 and (at_zero["n"] == 7).all()
    part = at_zero[(at_zero["mode"] == "fixed") & (at_zero["defense"] == "none")]
    assert part["value"].iloc[0] == pytest.approx(fixed["correct"].mean())
    printed = (run.folder / "results/tables/printed/certified.md").read_text()
    assert "digits-cnn" in printed and "looks 40, 100" in printed
    # one sample alone, outside of the workflow: the same certificate
    from windtunnel import images
    from windtunnel.models.load import load_model
    from windtunnel.stages.images import subset
    from windtunnel.stages.purify import nchw

    chosen = subset(images.build("photodigits", "test"), 7)
    model = load_model(run.folder / "results/models/digits-cnn")
    alone = Smoothed(Pipeline(model), sigma=0.12).certify(
        nchw(chosen.images)[3], chosen.sample_ids[3], choose_draws=20, draws=100, alpha=0.001
    )
    row = fixed.loc[chosen.sample_ids[3]]
    assert (alone.agreeing, alone.chosen) == (row["agreeing"], row["chosen"])
