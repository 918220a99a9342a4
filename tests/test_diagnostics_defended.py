"""Diagnostics of what a defense does, against planted defenses: maps, recovered perturbations, realism, shifts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_samples import Linear64, linear_samples
from test_diagnostics import Dither, Same, inputs, permuted

from windtunnel import images, registry
from windtunnel.attacks.pgd import PGD
from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, Purified
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.diagnostics.cam_drift import CamDrift
from windtunnel.diagnostics.deception import Deception
from windtunnel.diagnostics.realism import Realism
from windtunnel.diagnostics.shift_consistency import ShiftConsistency
from windtunnel.engine import ModelNotGuarded, Pipeline, predict, run_attack
from windtunnel.explain.agreement import overlap, rank_correlation
from windtunnel.explain.base import EXPLAINERS, NotExplainable, explainer_named
from windtunnel.metrics.intervals import mean_estimate
from windtunnel.metrics.realism import frechet_distance, kid_rows
from windtunnel.models.load import load_model
from windtunnel.stages.purify import nchw

MODELS = Path(__file__).parents[1] / "resources" / "models"
ATTACKED = ["cam_drift", "deception"]
NOT_ATTACKED = ["realism", "shift_consistency"]
SHORT: dict[str, dict[str, Any]] = {"cam_drift": {"steps": 5}, "deception": {"steps": 5}}
Tensor = torch.Tensor


class Pooled64(torch.nn.Module):
    """Maps, their mean and a linear head in float64 without a matrix product: rows cannot disturb each other."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.register_buffer("kernel", torch.from_numpy(rng.normal(size=(6, 3, 2, 2))))
        self.register_buffer("head", torch.from_numpy(rng.normal(size=(4, 6))))
        self.eval()

    def maps(self, x: Tensor) -> Tensor:
        blocks = (x.double() - 0.5).unfold(2, 2, 2).unfold(3, 2, 2)  # [N, 3, h, w, 2, 2]
        drawn = (blocks[:, None] * self.kernel[None, :, :, None, None]).sum((2, 5, 6))
        return drawn.clamp_min(0.0) + 0.5 * drawn.square()

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))

    def logits_from(self, features: Tensor) -> Tensor:
        return 20 * (features[:, None] * self.head).sum(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_from(self.features(x))


@dataclass(frozen=True)
class Restoring(Defense):
    """Knows the clean images, and gives back the nearest."""

    clean: np.ndarray

    def purify(self, images: np.ndarray) -> Purified:
        distance = ((images[:, None] - self.clean[None]) ** 2).sum(axis=(2, 3, 4))
        return Purified(self.clean[distance.argmin(1)])


@dataclass(frozen=True)
class Halfway(Defense):
    """Draws every value half of the way to grey."""

    def purify(self, images: np.ndarray) -> Purified:
        return Purified((images + np.float32(0.5)) / 2)


def pooled_samples(n: int = 14, size: int = 8) -> tuple[Pooled64, np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).uniform(0.2, 0.8, (n, 3, size, size)).astype(np.float32)
    model = Pooled64()
    return model, x, predict(model, x)[0].argmax(1)


def attacked(model: torch.nn.Module, given: Inputs, steps: int) -> Any:
    settings = {"eps": given.eps, "norm": given.norm, "seed": given.seed, "mode": "full"}
    return run_attack(model, PGD(steps=steps), given.images, given.labels, given.sample_ids, **settings)


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("defended", [False, True], ids=["bare", "random-defense"])
@pytest.mark.parametrize("name", ATTACKED + NOT_ATTACKED)
def test_contract_and_rows_do_not_know_of_each_other(name: str, defended: bool, norm: str) -> None:
    """Bit for bit; wrong samples are NaN where an attack starts from them, and disturb nobody."""
    model, x, labels = pooled_samples()
    labels[[2, 9]] = (labels[[2, 9]] + 1) % 4
    given = inputs(x, labels, eps=0.05 if norm == "linf" else 0.5, norm=norm, seed=3)
    kept, random_state = x.copy(), torch.random.get_rng_state()
    pipeline = Pipeline(model, defense=Dither(reach=0.2), rule="own") if defended else Pipeline(model)
    diagnostic = registry.load("diagnostic", name)(**SHORT.get(name, {}))
    assert isinstance(diagnostic, Diagnostic)
    card = registry.card("diagnostic", name).constants
    assert card["quantities"] == diagnostic.quantities and set(card["bill"]) <= set(SHORT.get(name, {}))

    one = diagnostic.measure(pipeline, given)
    assert tuple(one) == diagnostic.quantities
    assert all(v.shape == (14,) and v.dtype == np.float64 and not np.isinf(v).any() for v in one.values())
    assert np.array_equal(x, kept) and torch.equal(random_state, torch.random.get_rng_state())
    if name == "realism" and not defended:
        assert all(np.isnan(v).all() for v in one.values())
        return
    right = np.setdiff1d(np.arange(14), [2, 9])
    for quantity, values in one.items():
        if "defended" in quantity and not defended:
            assert np.isnan(values).all(), quantity
        elif name in ATTACKED:
            assert np.isnan(values[[2, 9]]).all() and np.isfinite(values[right]).sum() >= 6, quantity
        else:
            assert np.isfinite(values).all(), quantity
    assert any(len(np.unique(v[right])) > 5 for v in one.values())

    order = np.random.default_rng(1).permutation(14)
    two = diagnostic.measure(pipeline, replace(permuted(given, order), batch_size=5))
    for quantity, values in one.items():
        assert np.array_equal(values[order], two[quantity], equal_nan=True), quantity
    other = diagnostic.measure(pipeline, replace(given, seed=4))
    changed = any(not np.array_equal(one[q], other[q], equal_nan=True) for q in one)
    assert changed == (name in ATTACKED or defended)  # an attack's start, a defense's dice: nothing else is drawn


@pytest.mark.parametrize("name", ATTACKED + NOT_ATTACKED)
def test_refused_models_and_norms_empty_sets_and_no_budget(name: str) -> None:
    model, x, labels = pooled_samples(5)
    diagnostic = registry.load("diagnostic", name)(**SHORT.get(name, {}))
    pipeline = Pipeline(model, defense=Same())
    with pytest.raises(ValueError, match="norm"):
        diagnostic.measure(pipeline, inputs(x, labels, norm="l1"))
    assert all(v.shape == (0,) for v in diagnostic.measure(pipeline, inputs(x[:0], labels[:0])).values())
    still = diagnostic.measure(pipeline, inputs(x, labels, eps=0.0))
    if name == "cam_drift":
        assert all((still[q] == (q != "fooled")).all() for q in still)
    if name == "deception":
        assert all((still[q] == q.startswith(("pa_", "cam_"))).all() for q in still)
    model.train()
    with pytest.raises(ModelNotGuarded):
        diagnostic.measure(pipeline, inputs(x, labels))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"share": 1.0}, {"explainer": "gradcam"}])
@pytest.mark.parametrize("kind", [CamDrift, Deception])
def test_settings_that_mean_nothing(kind: type, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(**wrong)
    for of in (lambda: Realism(degree=0), lambda: ShiftConsistency(reach=0)):
        with pytest.raises(ValueError, match="at least 1"):
            of()


# ---------------------------------------------------------------------------------------------------------- CAM drift


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_cam_drift_compares_the_maps_of_the_four_versions(explainer: str) -> None:
    model, x, labels = pooled_samples()
    given = inputs(x, labels, eps=0.05)
    adversarial = attacked(model, given, 5)
    diagnostic = CamDrift(explainer=explainer, steps=5)
    unmoved = diagnostic.measure(Pipeline(model, defense=Same()), given)
    for kind in ("iou", "rank"):
        assert np.array_equal(unmoved[f"{kind}_defended"], unmoved[f"{kind}_attacked"], equal_nan=True)
        assert np.abs(unmoved[f"{kind}_defended_clean"] - 1).max() < 1e-12
    assert np.nanmean(unmoved["rank_attacked"]) < 0.95 and unmoved["fooled"].mean() > 0.5
    assert np.array_equal(unmoved["fooled"], adversarial.success)
    restored = diagnostic.measure(Pipeline(model, defense=Restoring(x)), given)
    assert np.abs(restored["iou_defended"] - 1).max() < 1e-12 and np.abs(restored["rank_defended"] - 1).max() < 1e-12
    assert np.array_equal(restored["iou_attacked"], unmoved["iou_attacked"])
    gone = np.isnan(unmoved["rank_attacked"])  # no evidence for the first class is left: no rank, no overlap
    assert (unmoved["iou_attacked"][gone] == 0).all() and gone.any() == (explainer == "grad_cam")

    if explainer != "smooth_grad_cam_pp":  # without noise the maps can be made by hand
        halved = diagnostic.measure(Pipeline(model, defense=Halfway(), rounds=2), given)
        asked = [x, adversarial.best, 0.375 + adversarial.best / 4, 0.375 + x / 4]
        y = torch.from_numpy(labels)
        clean, *others = [
            explainer_named(explainer).explain(model, torch.from_numpy(v.astype(np.float32)), y) for v in asked
        ]
        for name, maps in zip(("attacked", "defended", "defended_clean"), others, strict=True):
            assert np.array_equal(halved[f"iou_{name}"], overlap(clean, maps, 0.2), equal_nan=True), name
            assert np.array_equal(halved[f"rank_{name}"], rank_correlation(clean, maps), equal_nan=True), name


def test_cam_drift_refuses_a_model_without_maps() -> None:
    model, x, labels = linear_samples(4)
    with pytest.raises(NotExplainable, match="maps"):
        CamDrift(steps=1).measure(Pipeline(model), inputs(x, labels))


# ---------------------------------------------------------------------------------------------------------- deception


def test_deception_of_nothing_of_all_and_of_half() -> None:
    model, x, labels = pooled_samples()
    given = inputs(x, labels, eps=0.05)
    result = attacked(model, given, 5)
    gap = (result.best.astype(np.float64) - x).reshape(14, -1)
    length = np.sqrt((gap**2).sum(1))
    z, z_adversarial = (predict(model, v)[0].astype(np.float64) for v in (x, result.best))
    apart = np.sqrt(((z - z_adversarial) ** 2).sum(1))
    fooled = result.success.astype(float)
    assert fooled.mean() > 0.5

    none = Deception(steps=5).measure(Pipeline(model), given)
    assert np.allclose(none["l2"], length, rtol=1e-9) and np.allclose(none["mse"], (gap**2).mean(1), rtol=1e-9)
    assert np.allclose(none["mae"], np.abs(gap).mean(1), rtol=1e-9) and (none["l2_recovered"] == 0).all()
    assert np.array_equal(none["pa_benign"], 1 - fooled) and np.array_equal(none["pa_adversarial"], 1 - fooled)
    assert np.allclose(none["logits_benign"], apart, rtol=1e-5)
    assert np.allclose(none["logits_adversarial"], apart, rtol=1e-5)
    assert np.array_equal(none["fooled"], fooled)

    full = Deception(steps=5).measure(Pipeline(model, defense=Restoring(x)), given)
    assert (full["l2"] == 0).all() and (full["mse"] == 0).all() and (full["logits_benign"] == 0).all()
    assert (full["pa_benign"] == 1).all() and (full["pa_adversarial"] == 1).all()
    assert np.allclose(full["l2_recovered"], length, rtol=1e-9)
    assert np.abs(full["logits_adversarial"]).max() < 1e-3  # float32 rounding of x' - x + x
    assert (full["cam_benign"] == 1).all() and np.nanmin(full["cam_adversarial"]) > 0.99

    half = Deception(steps=5).measure(Pipeline(model, defense=Halfway()), given)
    cleaned = (result.best + 0.5) / 2
    recovered = result.best - cleaned + x
    predicted = [predict(model, v.astype(np.float32))[0].argmax(1) for v in (cleaned, recovered)]
    assert np.array_equal(half["pa_benign"], predicted[0] == labels)
    assert np.array_equal(half["pa_adversarial"], predicted[1] == z_adversarial.argmax(1))
    assert np.allclose(half["l2_recovered"], np.sqrt(((result.best - cleaned) ** 2).sum((1, 2, 3))), rtol=1e-5)
    y, became = torch.from_numpy(labels), torch.from_numpy(z_adversarial.argmax(1))
    grad_cam = explainer_named("grad_cam")
    for name, pair, classes in (
        ("cam_benign", (x, cleaned), y),
        ("cam_adversarial", (result.best, recovered), became),
    ):
        one, two = (grad_cam.explain(model, torch.from_numpy(v.astype(np.float32)), classes) for v in pair)
        assert np.array_equal(half[name], overlap(one, two, 0.2), equal_nan=True)


def test_deception_without_maps_leaves_only_the_attribution_out() -> None:
    model, x, labels = linear_samples(6)
    found = Deception(steps=3).measure(Pipeline(model), inputs(x, labels, eps=0.05))
    assert np.isnan(found["cam_benign"]).all() and np.isnan(found["cam_adversarial"]).all()
    assert all(np.isfinite(v).all() for q, v in found.items() if not q.startswith("cam_"))


# ------------------------------------------------------------------------------------------------------------ realism


def test_realism_is_the_distance_of_the_features_and_its_mean_has_an_interval() -> None:
    model, test = load_model(MODELS / "digits-cnn"), images.build("photodigits", "test")
    x, labels = nchw(test.images[:200]), np.asarray(test.labels[:200]).astype(np.int64)
    given = inputs(x, labels)
    same = Realism().measure(Pipeline(model, defense=Same()), given)
    assert (same["kid"] == 0).all() and (same["frechet"] == 0).all()
    jpeg = registry.load("defense", "jpeg")
    before = predict(model, x, with_features=True)[1].astype(np.float64)
    estimates, distances = [], []
    for quality in (10, 75):
        found = Realism().measure(Pipeline(model, defense=jpeg(quality=quality)), given)
        after = predict(model, jpeg(quality=quality).purify(x).images, with_features=True)[1].astype(np.float64)
        assert np.allclose(found["kid"], kid_rows(before, after), rtol=1e-3, atol=1e-6)
        assert found["frechet"].mean() == pytest.approx(frechet_distance(before, after), rel=1e-4)
        estimates.append(mean_estimate(found["kid"]))
        distances.append(found["frechet"].mean())
    worse, better = estimates
    assert worse.ci_low > 0 and worse.ci_low > better.ci_high and distances[0] > 3 * distances[1] > 0


def test_realism_leaves_out_what_is_not_finite_and_needs_features() -> None:
    model, x, labels = pooled_samples()

    class Blind(Pooled64):
        def features(self, x: Tensor) -> Tensor:
            found = super().features(x)
            return torch.where(x[:, 0, 0, 0].double()[:, None] == float(broken), torch.nan, found)

    broken = x[4, 0, 0, 0]
    blind = Realism().measure(Pipeline(Blind(), defense=Halfway()), inputs(x, labels))
    rest = np.setdiff1d(np.arange(14), [4])
    without = Realism().measure(Pipeline(model, defense=Halfway()), permuted(inputs(x, labels), rest))
    for quantity in ("kid", "frechet"):
        assert np.flatnonzero(np.isnan(blind[quantity])).tolist() == [4]
        assert np.array_equal(blind[quantity][rest], without[quantity])
    two = permuted(inputs(x, labels), np.array([0, 1]))
    assert np.isnan(Realism().measure(Pipeline(model, defense=Halfway()), two)["kid"]).all()
    linear, x, labels = linear_samples(4)
    with pytest.raises(ValueError, match="features"):
        Realism().measure(Pipeline(linear, defense=Halfway()), inputs(x, labels))


# -------------------------------------------------------------------------------------------------- shift consistency


class Pixel(Linear64):
    """Class 0 exactly where the red value in row 4, column 4 is above one half; NaN below one tenth."""

    def forward(self, x: Tensor) -> Tensor:
        z = 10 * (x[:, 0, 4, 4].double() - 0.5)
        z = torch.where(z < -4, torch.nan, z)
        return torch.stack([z, -z], dim=1)


def test_shift_consistency_of_a_model_that_reads_one_pixel() -> None:
    """A shift by (d, r) brings the value of row 4 - d, column 4 - r there, around the edge too."""
    x = np.full((4, 3, 8, 8), 0.75, dtype=np.float32)
    x[1, 0, 3, 4], x[1, 0, 5, 5] = 0.25, 0.35  # two of the eight neighbours say class 1
    x[2, 0, 3, 3] = 0.0  # one neighbour makes NaN
    x[3, 0, 2, 4] = 0.25  # two pixels away
    labels = np.array([1, 0, 0, 0])
    one = ShiftConsistency().measure(Pipeline(Pixel()), inputs(x, labels))
    assert one["consistent"].tolist() == [1.0, 6 / 8, 7 / 8, 1.0]
    assert one["worst_case_correct"].tolist() == [0, 0, 0, 1] and one["clean_correct"].tolist() == [0, 1, 1, 1]
    assert one["largest_change"][[0, 1, 3]] == pytest.approx([0, 5, 0], abs=1e-6) and np.isnan(one["largest_change"][2])
    two = ShiftConsistency(reach=2).measure(Pipeline(Pixel()), inputs(x, labels))
    assert two["consistent"].tolist() == [1.0, 22 / 24, 23 / 24, 23 / 24]
    around = np.full((1, 3, 5, 5), 0.75, dtype=np.float32)
    around[0, 0, 0, 0] = 0.25  # shifted up and left by one, it comes to row 4, column 4
    edge = ShiftConsistency().measure(Pipeline(Pixel()), inputs(around, np.array([0])))
    assert edge["consistent"].tolist() == [7 / 8]


def test_shift_consistency_is_1_where_nothing_depends_on_place_and_is_asked_in_front_of_the_defense() -> None:
    class Mean(Linear64):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.double().mean((1, 2, 3))
            return torch.stack([mean - 0.5, 0.5 - mean], dim=1)

    class Corner(Defense):
        def purify(self, images: np.ndarray) -> Purified:
            return Purified(np.broadcast_to(images[:, :, :1, :1], images.shape).copy())

    x = np.random.default_rng(0).uniform(0.6, 0.9, (5, 3, 8, 8)).astype(np.float32)
    x[:, :, 1, 1] = 0.1
    given = inputs(x, np.zeros(5, dtype=np.int64))
    bare = ShiftConsistency(reach=2).measure(Pipeline(Mean()), given)
    assert (bare["consistent"] == 1).all() and (bare["worst_case_correct"] == 1).all()
    assert bare["largest_change"].max() < 1e-12
    corner = ShiftConsistency().measure(Pipeline(Mean(), defense=Corner()), given)
    assert (corner["consistent"] == 7 / 8).all() and (corner["worst_case_correct"] == 0).all()
    assert (corner["clean_correct"] == 1).all()
