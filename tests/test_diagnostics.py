"""The diagnostics against closed forms on linear, quadratic and planted models; rows that do not know of each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from attack_samples import Curved64, Linear64, Scaled, digits_net, linear_samples

from windtunnel import registry
from windtunnel.attacks.geometry import random_start
from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, Purified, RandomDefense
from windtunnel.defenses.bits import Bits
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.diagnostics.boundary_tilt import BoundaryTilt
from windtunnel.diagnostics.gradient_direction import GradientDirection
from windtunnel.diagnostics.landscape import Landscape, axis, grid
from windtunnel.diagnostics.level_set import LevelSet
from windtunnel.diagnostics.local_linearity import LocalLinearity
from windtunnel.diagnostics.min_perturbation import MinPerturbation
from windtunnel.diagnostics.pipeline_contract import PipelineContract
from windtunnel.diagnostics.sparsity import Sparsity, into_cone
from windtunnel.diagnostics.surrogate_gap import SurrogateGap
from windtunnel.engine import ModelNotGuarded, Pipeline, RowRandom, predict

SHORT: dict[str, dict[str, Any]] = {
    "sparsity": {"directions": 3, "searches": 4, "steps": 5},
    "level_set": {"steps": 8},
    "landscape": {"points": 5},
    "min_perturbation": {"searches": 4, "steps": 4},
    "surrogate_gap": {"steps": 4},
}
UNRELATED_TO_SAMPLE = {"pipeline_contract"}
EVERY_SAMPLE = {"local_linearity"}
DEFENDED = {"cam_drift", "deception", "realism", "shift_consistency"}
"""Their contract, on a model with feature maps, is in ``test_diagnostics_defended.py``."""
Measured = dict[str, np.ndarray]


def inputs(images: np.ndarray, labels: np.ndarray, *, eps: float = 8 / 255, norm: str = "linf", **more: Any) -> Inputs:
    ids = [f"sample-{i:03d}" for i in range(len(images))]
    return Inputs(**({"images": images, "labels": labels, "sample_ids": ids, "eps": eps, "norm": norm} | more))


def permuted(of: Inputs, order: np.ndarray) -> Inputs:
    ids = [of.sample_ids[i] for i in order]
    return replace(of, images=of.images[order], labels=np.asarray(of.labels)[order], sample_ids=ids)


def here() -> list[str]:
    return [name for name in registry.names("diagnostic") if name not in DEFENDED]


def cases() -> list[Any]:
    found = []
    for name in here():
        for norm in registry.card("diagnostic", name).constants["norms"]:
            found.append(pytest.param(name, norm, id=f"{name}-{norm}"))
    return found


class Same(Defense):
    """A defense that does nothing; what its backward rule does is up to the test."""

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(images.copy())


@dataclass(frozen=True, kw_only=True)
class Dither(RandomDefense):
    """Noise of at most ``reach``: the rows' own dice."""

    is_random: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("own",)
    reach: float = 0.02

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        return {"noise": np.stack([g.uniform(-1, 1, shape).astype(np.float32) for g in generators])}

    def purify_drawn(self, images: np.ndarray, draw: Any) -> Purified:
        return Purified(np.clip(images + np.float32(self.reach) * draw["noise"], 0, 1))

    def backward_rules_drawn(self, draws: Any) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        noise = sum(torch.from_numpy(draw["noise"]) for draw in draws)
        return {"own": lambda x: (x + self.reach * noise.to(x)).clamp(0, 1)}


# ------------------------------------------------------------------------------------------------------- the contract


def test_catalogue_of_diagnostics() -> None:
    names = registry.names("diagnostic")
    assert names == [
        *("boundary_tilt", "cam_drift", "deception", "gradient_direction", "landscape", "level_set"),
        *("local_linearity", "min_perturbation", "pipeline_contract", "realism", "shift_consistency"),
        *("sparsity", "surrogate_gap"),
    ]
    for name in names:
        card = registry.card("diagnostic", name)
        assert card.constants["quantities"] and set(card.constants["bill"]) <= set(card.settings), name


@pytest.mark.parametrize(("name", "norm"), cases())
@pytest.mark.parametrize("defended", [False, True], ids=["bare", "random-defense"])
def test_contract_and_rows_do_not_know_of_each_other(name: str, norm: str, defended: bool) -> None:
    """Bit for bit, on a model whose rows cannot disturb each other; wrong samples are NaN and disturb nobody."""
    model = Curved64()
    images = np.random.default_rng(0).uniform(0.3, 0.7, (14, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    labels[[2, 9]] = 1 - labels[[2, 9]]
    given = inputs(images, labels, eps=0.02 if norm == "linf" else 0.3, norm=norm, seed=3)
    kept, random_state = images.copy(), torch.random.get_rng_state()
    pipeline = Pipeline(model, defense=Dither(), rule="own") if defended else Pipeline(model)
    diagnostic = registry.load("diagnostic", name)(**SHORT.get(name, {}))
    assert isinstance(diagnostic, Diagnostic)

    one = diagnostic.measure(pipeline, given)
    assert tuple(q for q in one if not q.startswith("slice_")) == diagnostic.quantities  # slices come on top
    assert all(v.shape == (14,) and v.dtype == np.float64 and not np.isinf(v).any() for v in one.values())
    assert np.array_equal(images, kept) and torch.equal(random_state, torch.random.get_rng_state())
    if name == "surrogate_gap" and not defended:
        assert all(np.isnan(v).all() for v in one.values())
        return
    assert any(np.isfinite(v).any() for v in one.values())
    if not defended:  # who is wrong behind noise is for the noise to say
        for quantity, values in one.items():
            if quantity == "clean_correct":
                assert np.array_equal(np.flatnonzero(values == 0), [2, 9])
            elif name not in UNRELATED_TO_SAMPLE | EVERY_SAMPLE:
                assert np.isnan(values[[2, 9]]).all(), quantity
            elif quantity != "batch_dependence":
                assert np.isfinite(values).all(), quantity

    order = np.random.default_rng(1).permutation(14)
    two = diagnostic.measure(pipeline, replace(permuted(given, order), batch_size=5))
    for quantity, values in one.items():
        assert np.array_equal(values[order], two[quantity], equal_nan=True), quantity
    if name not in UNRELATED_TO_SAMPLE | {"boundary_tilt"}:
        other = diagnostic.measure(pipeline, replace(given, seed=4))
        assert any(not np.array_equal(one[q], other[q], equal_nan=True) for q in one) or name in {"surrogate_gap"}


@pytest.mark.parametrize("name", [n for n in here() if n != "pipeline_contract"])
def test_refuses_a_model_that_is_not_frozen_and_a_norm_it_has_not(name: str) -> None:
    model, images, labels = linear_samples(4)
    diagnostic = registry.load("diagnostic", name)()
    pipeline = Pipeline(model, defense=Same())
    with pytest.raises(ValueError, match="norm"):
        diagnostic.measure(pipeline, inputs(images, labels, norm="l1"))
    model.train()
    with pytest.raises(ModelNotGuarded):
        diagnostic.measure(pipeline, inputs(images, labels))


@pytest.mark.parametrize("name", here())
def test_no_samples_and_no_budget(name: str) -> None:
    model, images, labels = linear_samples(4)
    diagnostic = registry.load("diagnostic", name)(**SHORT.get(name, {}))
    pipeline = Pipeline(model, defense=Same())
    assert all(v.shape == (0,) for v in diagnostic.measure(pipeline, inputs(images[:0], labels[:0])).values())
    still = diagnostic.measure(pipeline, inputs(images, labels, eps=0.0))
    assert all(v.shape == (4,) and not np.isinf(v).any() for v in still.values())
    for quantity in {"beats_all", "found", "vulnerable", "gamma", "fooled_real"} & set(still):
        assert np.abs(still[quantity]).max() < 1e-9, quantity


# ------------------------------------------------------------------------------------------------ adversarial sparsity


@pytest.mark.parametrize("warm_start", [True, False])
def test_sparsity_linf_is_that_of_brute_force_on_a_linear_model(warm_start: bool) -> None:
    model, near, near_labels = linear_samples(4)
    _, far, far_labels = linear_samples(2, margin=9.0)
    images, labels = np.concatenate([near, far]), np.concatenate([near_labels, far_labels])
    eps, n = 0.045, 5
    result = Sparsity(directions=n, warm_start=warm_start).measure(Pipeline(model), inputs(images, labels, eps=eps))
    w = model.w.numpy()
    score = images.reshape(6, -1).astype(np.float64) @ w + model.bias
    for i in range(6):
        towards = -w * np.sign(score[i])  # what lowers the margin
        assert result["vulnerable"][i] == float(eps * np.abs(w).sum() > abs(score[i])) == float(i < 4)
        if i >= 4:
            assert np.isnan(result["sparsity"][i]) and np.isnan(result["spread"][i])
            continue
        stream = RowRandom.keyed(0, [f"sample-{i:03d}"])
        stream.uniform(3, 8, 8)  # the start of the attack without a constraint
        signs = [1 - 2 * stream.integers(2, 3, 8, 8).numpy().ravel() for _ in range(n)]
        orders = [stream.uniform(3, 8, 8).numpy().ravel().argsort() for _ in range(n)]
        sizes = []
        for u, order in zip(signs, orders, strict=True):
            gained = [
                eps * (np.abs(towards[order[:k]]).sum() + (u * towards)[order[k:]].sum()) for k in range(w.size + 1)
            ]
            sizes.append(next(k for k in range(1, w.size + 1) if gained[k] > abs(score[i])))
        assert result["sparsity"][i] == pytest.approx(np.mean(sizes), abs=1e-9)
        assert result["spread"][i] == pytest.approx(np.std(sizes, ddof=1), abs=1e-9)
        assert 20 < np.mean(sizes) < 180 and np.std(sizes) > 0


def test_sparsity_l2_is_the_angle_known_for_a_linear_model() -> None:
    """In the ball of radius eps the cone around u holds an adversarial image if its half-angle is at least angle(u, w)
    - arccos(distance / eps)."""
    model, images, labels = linear_samples(6)
    w = model.w.numpy()
    eps, n = 0.5, 4
    diagnostic = Sparsity(directions=n, steps=60)
    result = diagnostic.measure(Pipeline(model), inputs(images, labels, eps=eps, norm="l2"))
    score = images.reshape(6, -1).astype(np.float64) @ w + model.bias
    for i in range(6):
        stream = RowRandom.keyed(0, [f"sample-{i:03d}"])
        stream.normal(3, 8, 8), stream.uniform()  # the start of the attack without a constraint
        angles = []
        for _ in range(n):
            u = stream.normal(3, 8, 8).numpy().ravel().astype(np.float64)
            cosine = -np.sign(score[i]) * (u @ w) / np.linalg.norm(u) / np.linalg.norm(w)
            angles.append(np.arccos(cosine) - np.arccos(abs(score[i]) / np.linalg.norm(w) / eps))
        assert result["sparsity"][i] == pytest.approx(np.mean(angles), abs=0.02)
        assert result["sparsity"][i] > np.mean(angles) - 2e-3  # nothing succeeds where nothing can
    assert (result["vulnerable"] == 1).all()


def test_sparsity_tells_resisting_from_wrong_and_a_direction_that_is_enough_alone() -> None:
    model, images, labels = linear_samples(6)
    labels[0] = 1 - labels[0]
    small = Sparsity(directions=2).measure(Pipeline(model), inputs(images, labels, eps=0.01))
    assert np.isnan(small["sparsity"]).all() and np.isnan(small["spread"]).all()
    assert small["clean_correct"].tolist() == [0, 1, 1, 1, 1, 1]
    assert np.isnan(small["vulnerable"][0]) and (small["vulnerable"][1:] == 0).all()

    class Brittle(Linear64):  # leaves its class as soon as anything moves
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved = (x - 0.5).flatten(1).double().abs().amax(1) - 1e-4
            return torch.stack([-moved, moved, moved - 9, moved - 9], dim=1)

    still = np.full((3, 3, 8, 8), 0.5, dtype=np.float32)
    large = Sparsity(directions=2).measure(Pipeline(Brittle()), inputs(still, np.zeros(3, dtype=np.int64)))
    assert (large["sparsity"] == 1).all() and (large["spread"] == 0).all() and (large["vulnerable"] == 1).all()


def test_into_cone_is_the_nearest_point() -> None:
    """Against a search over all rays of the cone in the plane of the axis and the point."""
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(40, 2, 3, 3))
    axes /= np.linalg.norm(axes.reshape(40, -1), axis=1).reshape(-1, 1, 1, 1)
    delta, angle = rng.normal(size=(40, 2, 3, 3)), rng.uniform(0.1, 3.1, 40)
    found = into_cone(torch.from_numpy(delta), torch.from_numpy(axes), torch.from_numpy(angle)).numpy()
    along = (delta * axes).sum((1, 2, 3))
    across = np.linalg.norm((delta - along.reshape(-1, 1, 1, 1) * axes).reshape(40, -1), axis=1)
    turns = np.linspace(0, 1, 2001) * angle[:, None]
    foot = (along[:, None] * np.cos(turns) + across[:, None] * np.sin(turns)).clip(0)  # nearest point of each ray
    squared = (along**2 + across**2)[:, None] - foot**2
    ours = np.linalg.norm((found - delta).reshape(40, -1), axis=1)
    assert np.abs(ours - np.sqrt(squared.min(1).clip(0))).max() < 0.01
    a = (found * axes).sum((1, 2, 3))
    b = np.linalg.norm((found - a.reshape(-1, 1, 1, 1) * axes).reshape(40, -1), axis=1)
    assert ((np.arctan2(b, a) <= angle + 1e-9) | (np.hypot(a, b) < 1e-9)).all()
    assert (ours == 0).any() and (ours > 0).any() and (np.hypot(a, b) < 1e-9).any()


# ------------------------------------------------------------------------------------------------- level set traversal


def test_level_set_of_a_linear_model_ends_where_the_target_is_straight_across_the_boundary() -> None:
    model, images, labels = linear_samples(8)
    result = LevelSet(steps=200, adversarial_step=0.0).measure(Pipeline(model), inputs(images, labels))
    left = 8 / np.linalg.norm(model.w.numpy())  # source and target have the scores +4 and -4
    assert np.allclose(result["rmse"], left / np.sqrt(192), rtol=0.04)
    assert (result["rmse_start"] > 1.2 * result["rmse"]).all()
    p = 1 / (1 + np.exp(-4))
    assert np.allclose(result["p_source"], p, atol=1e-4)
    for name in ("path_confidence", "triangle_mean", "edge_mean"):
        assert np.allclose(result[name], p, atol=0.01)
    assert (result["edge_drop"] < 0.01).all() and (result["share_1"] == 1).all()


def test_level_set_of_a_blind_model_ends_at_its_target() -> None:
    class Blind(Linear64):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = super().forward(x)
            return torch.stack([z[:, 0] * 0 + 3, z[:, 1] * 0, z[:, 2] * 0, z[:, 3] * 0], dim=1)

    images = np.random.default_rng(0).uniform(0, 1, (6, 3, 8, 8)).astype(np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1])
    result = LevelSet().measure(Pipeline(Blind()), inputs(images, labels))
    assert np.isnan(result["rmse"][3:]).all()
    assert (result["rmse"][:3] < 0.01).all() and (result["rmse_start"][:3] > 0.3).all()
    assert (result["linf"][:3] < 0.02).all() and np.allclose(result["edge_drop"][:3], 0, atol=1e-12)
    p = np.exp(3) / (np.exp(3) + 3)
    assert np.allclose(result["triangle_mean"][:3], p) and (result["share_1"][:3] == 1).all()
    assert (result["share_0"][:3] == 0).all()  # strictly above: never where all are equal


def test_level_set_needs_two_images_of_another_class() -> None:
    model, images, labels = linear_samples(6)
    keep = np.array([0, 1, 2, 4])  # labels 0, 1, 0, 0: the first has one rival
    result = LevelSet(steps=3).measure(Pipeline(model), inputs(images[keep], labels[keep]))
    assert np.isfinite(result["rmse"]).tolist() == [False, True, False, False]


# ------------------------------------------------------------------------------------------------- boundary tilting


@pytest.mark.parametrize("tilt", [0.0, 0.4, 1.2, 2.0])
def test_tilt_is_the_angle_planted(tilt: float) -> None:
    model = Linear64()
    rng = np.random.default_rng(5)
    w = model.w.numpy() / np.linalg.norm(model.w.numpy())
    aside = rng.normal(size=192)
    aside -= (aside @ w) * w
    aside /= np.linalg.norm(aside)
    way = np.cos(tilt) * w + np.sin(tilt) * aside  # from the mean of class 1 to that of class 0
    spread = np.array([0.2, 0.0, -0.2])
    # class 0 has the mean +way/2, class 1 has -way/2, up to a common shift along w that keeps all on their side
    centre = np.repeat([1.0, -1.0], 3)[:, None] * way / 2 * 0.4
    lift = np.repeat([1.0, -1.0], 3)[:, None] * w * (0.0 if tilt < 1.5 else 0.3)
    noise = np.tile(spread, 2)[:, None] * aside
    images = (0.5 + centre + lift + noise).reshape(6, 3, 8, 8).astype(np.float32)
    assert images.min() > 0 and images.max() < 1
    labels = np.array([0, 0, 0, 1, 1, 1])
    means = images.reshape(6, -1).astype(np.float64)
    between = means[:3].mean(0) - means[3:].mean(0)
    expected = np.arccos(between @ w / np.linalg.norm(between))
    result = BoundaryTilt().measure(Pipeline(model), inputs(images, labels))
    right = predict(model, images)[0].argmax(1) == labels
    assert right.all() and np.allclose(result["tilt"], expected, atol=1e-3)
    if tilt < 1.5:
        assert expected == pytest.approx(tilt, abs=1e-3)
    assert (result["bend"] < 2e-3).all()


def test_bend_sees_curvature_and_nothing_is_said_without_a_boundary_or_a_rival() -> None:
    net, images, labels = digits_net()
    right = predict(net, images)[0].argmax(1) == labels
    bend = BoundaryTilt().measure(Pipeline(net), inputs(images, labels))["bend"]
    assert np.array_equal(np.isfinite(bend), right) and 0.03 < np.median(bend[right]) < np.nanmax(bend) < np.pi / 2
    lone = right & (labels == labels[right][0])
    only = BoundaryTilt().measure(Pipeline(net), inputs(images[lone], labels[lone]))
    assert np.isnan(only["tilt"]).all() and np.allclose(only["bend"], bend[lone], atol=1e-3)
    model, images, labels = linear_samples(4)
    far = BoundaryTilt(steps=1).measure(Pipeline(Bounded()), inputs(images, labels * 0))
    assert np.isnan(far["bend"]).all()


class Bounded(Linear64):
    """Always class 0, by a margin that moves but never reaches 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 2 + torch.tanh(self.score(x))
        return torch.stack([z, 0 * z, 0 * z - 1, 0 * z - 2], dim=1)


# -------------------------------------------------------------------------------------------------- local linearity


class Quadratic64(Linear64):
    """score = sum q (x - 1/2)^2 + 5, as the margin of class 1 over class 0."""

    def __init__(self, q: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("q", torch.from_numpy(q))

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return -((x.flatten(1).double() - 0.5).square() * self.q).sum(1) - 5


def test_a_linear_loss_is_linear() -> None:
    model, images, labels = linear_samples(5)
    for norm, eps in (("linf", 0.05), ("l2", 0.5)):
        result = LocalLinearity(loss="margin").measure(Pipeline(model), inputs(images, labels, eps=eps, norm=norm))
        assert result["e_lin"].max() < 1e-9 and result["gamma"].max() < 2e-4
    curved = LocalLinearity(loss="ce").measure(Pipeline(model), inputs(images, labels, eps=0.05))
    rise = 0.05 * np.abs(model.w.numpy()).sum()
    exact = np.log1p(np.exp(rise - 4)) - np.log1p(np.exp(-4)) - rise / (1 + np.exp(4))
    assert np.allclose(curved["linearisation_error"], exact, rtol=1e-3) and (curved["e_lin"] > 0).all()


def test_a_quadratic_loss_errs_by_its_second_term() -> None:
    q = np.random.default_rng(0).uniform(0.5, 1.5, 192)
    model, eps = Quadratic64(q), 0.05
    images = np.random.default_rng(1).uniform(0.3, 0.7, (4, 3, 8, 8)).astype(np.float32)
    labels = np.zeros(4, dtype=np.int64)
    result = LocalLinearity(loss="margin", draws=3).measure(Pipeline(model), inputs(images, labels, eps=eps))
    assert np.allclose(result["linearisation_error"], eps**2 * q.sum(), rtol=1e-3)
    assert np.allclose(result["gamma"], eps**2 * q.sum(), rtol=1e-3)  # any corner of the ball is a maximum

    random = RowRandom.keyed(0, [f"sample-{i:03d}" for i in range(4)])
    x, radius = torch.from_numpy(images), torch.full((4,), eps, dtype=torch.float64)
    expected = np.zeros(4)
    for _ in range(3):
        one, two = (random_start(x, radius, "linf", random).double().flatten(1).numpy() for _ in range(2))
        a = random.uniform().double().numpy()
        expected += (a * (1 - a) * ((one - two) ** 2 @ q)) ** 2 / 3
    assert np.allclose(result["e_lin"], expected, rtol=1e-3)


def test_gamma_looks_further_than_one_step() -> None:
    model, images, labels = digits_net()
    result = LocalLinearity().measure(Pipeline(model), inputs(images[:40], labels[:40]))
    assert (result["gamma"] >= result["linearisation_error"]).all()
    assert (result["gamma"] > result["linearisation_error"] * 1.05).mean() > 0.3
    assert (result["e_lin"] >= 0).all()


# -------------------------------------------------------------------------------------------------------- landscape


class Stairs64(Linear64):
    """The linear model behind a hard rounding to quarters, whose gradient is passed straight through."""

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return super().score(x + (torch.floor(x * 12) / 12 - x).detach())


def test_landscape_of_a_plane_is_a_plane() -> None:
    model, images, labels = linear_samples(5)
    eps, size = 0.02, np.abs(model.w.numpy()).sum()
    given = inputs(images, labels, eps=eps)
    places = axis(9, 2.0)
    assert places[4] == 0 and places[0] == -2 and places[6] == 1
    plane = grid(Pipeline(model), given, points=9)
    assert plane.shape == (5, 9, 9)
    # along the gradient the margin rises by eps |w|_1 per unit, along the random direction by something constant
    assert np.allclose(plane - plane[:, 4:5], places[None, :, None] * eps * size, atol=1e-4)
    assert np.allclose(np.diff(plane, 2, axis=2), 0, atol=1e-4)
    assert np.allclose(plane[:, 4, 4], -4, atol=1e-4)

    result = Landscape().measure(Pipeline(model), given)
    assert (result["monotonicity"] == 1).all() and (result["roughness"] < 1e-4).all()
    assert np.allclose(result["gradient_rise"], eps * size, rtol=1e-4)
    assert np.allclose(result["random_rise"], plane[:, 4, 6] - plane[:, 4, 4], atol=1e-9)
    assert np.allclose(result["wrong_share"], (plane > 0).mean((1, 2)))
    assert np.allclose(result["wrong_share_ball"], (plane[:, 2:7, 2:7] > 0).mean((1, 2)))
    ce = grid(Pipeline(model), given, points=3, loss="ce")
    assert np.allclose(ce[:, 1, 1], np.log1p(np.exp(-4)), atol=1e-4)


@pytest.mark.parametrize(("points", "span", "norm"), [(9, 2.0, "linf"), (5, 3.0, "l2")])
def test_landscape_stores_the_slice_it_was_measured_on(points: int, span: float, norm: str) -> None:
    """Row = along the gradient, where the linear model's margin is known in closed form; wrong samples have none."""
    model, images, labels = linear_samples(5)
    labels[3] = 1 - labels[3]
    eps, w = (0.02, model.w.numpy()) if norm == "linf" else (0.1, model.w.numpy())
    result = Landscape(points=points, span=span).measure(Pipeline(model), inputs(images, labels, eps=eps, norm=norm))
    names = [f"slice_{row}_{column}" for row in range(points) for column in range(points)]
    assert [q for q in result if q.startswith("slice_")] == ["slice_span", *names]
    right = np.arange(5) != 3
    assert (result["slice_span"][right] == span).all()
    assert all(np.isnan(result[q][3]) for q in result)
    slices = np.stack([result[name] for name in names], axis=1).reshape(5, points, points)[right]
    rise = eps * (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    middle = points // 2
    assert np.allclose(slices[:, :, middle], -4 + np.linspace(-span, span, points) * rise, atol=1e-4)
    assert (np.abs(np.ptp(slices, axis=2)) > 1e-3).all()  # sideways it does move, and by the same on every row
    assert np.allclose(slices - slices[:, :, :1], (slices - slices[:, :, :1])[:, :1], atol=1e-4)
    assert np.array_equal(result["wrong_share"][right], (slices > 0).mean((1, 2)))


def test_landscape_of_stairs_is_rough() -> None:
    _, images, labels = linear_samples(8)
    stairs = Stairs64()
    labels = predict(stairs, images)[0].argmax(1)
    flat = Landscape().measure(Pipeline(Linear64()), inputs(images, predict(Linear64(), images)[0].argmax(1), eps=0.02))
    rough = Landscape().measure(Pipeline(stairs), inputs(images, labels, eps=0.02))
    assert (rough["roughness"] > 0.02).all() and flat["roughness"].max() < 1e-4
    useless = Pipeline(Linear64(), defense=Same(), rule=lambda x: x.flip(-1))
    result = Landscape().measure(useless, inputs(images, predict(Linear64(), images)[0].argmax(1), eps=0.02))
    assert np.abs(result["gradient_rise"]).mean() < 0.4 * flat["gradient_rise"].mean()


# ----------------------------------------------------------------------------------------------- gradient direction


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 0.5)])
def test_an_honest_gradient_beats_all_random_steps(norm: str, eps: float) -> None:
    model, images, labels = linear_samples(40)
    result = GradientDirection().measure(Pipeline(model), inputs(images, labels, eps=eps, norm=norm))
    assert (result["beats_all"] == 1).all()
    w = model.w.numpy()
    assert np.allclose(result["gain"], eps * (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w)), rtol=1e-4)
    assert (result["random_gain"] < 0.5 * result["gain"]).all() and (result["random_gain"] > 0).mean() > 0.9


def test_a_useless_gradient_is_at_chance_and_none_is_no_direction() -> None:
    model, images, labels = linear_samples(150)
    useless = Pipeline(model, defense=Same(), rule=lambda x: x.flip(-1))  # the gradient of other pixels
    result = GradientDirection().measure(useless, inputs(images, labels))
    assert result["beats_all"].mean() < 0.2  # the gradient is one direction for all: 5 % on average over such rules
    share = [
        GradientDirection().measure(p, inputs(images[:30], labels[:30]))["beats_all"].mean() for p in shuffled(model)
    ]
    assert np.mean(share) < 0.2

    class Hard(Linear64):
        def score(self, x: torch.Tensor) -> torch.Tensor:
            return super().score(torch.round(x * 12) / 12)

    hard = Hard()
    result = GradientDirection(draws=1).measure(Pipeline(hard), inputs(images, predict(hard, images)[0].argmax(1)))
    assert (result["beats_all"] == 0).all() and (result["gain"] == 0).all()
    assert (result["random_gain"] < 0).any()  # standing still was better than noise, and still no direction


def shuffled(model: torch.nn.Module) -> list[Pipeline]:
    """Pipelines whose gradient is that of the model with its pixels in another order."""
    orders = [torch.from_numpy(np.random.default_rng(k).permutation(192)) for k in range(8)]
    return [
        Pipeline(model, defense=Same(), rule=lambda x, order=order: x.flatten(1)[:, order].view_as(x))
        for order in orders
    ]


# -------------------------------------------------------------------------------------------------- surrogate gap


def test_gap_of_a_stand_in_that_is_the_defense_and_of_one_that_is_not() -> None:
    model, images, _ = digits_net()
    images = np.where(images[:60] > 0.5, np.float32(0.75), np.float32(0.25))

    class Snap(Defense):
        """To the nearer of two levels: undoes whatever is smaller than a quarter."""

        def purify(self, images: np.ndarray) -> Purified:
            return Purified(np.where(images > 0.5, np.float32(0.75), np.float32(0.25)))

    labels = predict(model, images)[0].argmax(1)
    given = inputs(images, labels, eps=0.2)
    trigger = SurrogateGap().measure(Pipeline(model, defense=Snap()), given)
    assert trigger["fooled_stand_in"].mean() > 0.5 and (trigger["fooled_real"] == 0).all()
    honest = SurrogateGap().measure(Pipeline(model, defense=Bits(depth=8), rule="identity"), given)
    assert abs(honest["fooled_stand_in"].mean() - honest["fooled_real"].mean()) < 0.05
    assert np.array_equal(honest["fooled_stand_in"], trigger["fooled_stand_in"])  # the same stand-in
    assert honest["fooled_real"].mean() > 0.5


def test_stand_in_of_a_random_defense_throws_the_same_dice() -> None:
    model, images, labels = digits_net()
    pipeline = Pipeline(model, defense=Dither(reach=0.1), rounds=1, rule="own")
    result = SurrogateGap().measure(pipeline, inputs(images[:40], labels[:40], eps=0.15))
    assert np.array_equal(result["fooled_stand_in"], result["fooled_real"], equal_nan=True)
    assert 0 < np.nanmean(result["fooled_real"]) < 1


# ------------------------------------------------------------------------------------------------ pipeline contract


class Planted(torch.nn.Module):
    """The digits network with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.inner, self.fault = digits_net()[0], fault
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "random":
            x = x + 0.01 * torch.randn_like(x)
        if self.fault == "batch_dependence":
            x = x - 0.1 * x.mean(0, keepdim=True)
        if self.fault == "state_changed":
            self.calls += 1
        if self.fault == "dynamic":
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                (gradient,) = GRAD(self.inner(leaf).logsumexp(1).sum(), leaf)
            x = x - 0.01 * gradient.sign()
        z = self.inner(x)
        return z.softmax(1) if self.fault == "softmax" else z


GRAD = torch.autograd.grad  # imported by name, as a careless defense might
FACTS = ("random", "softmax", "train_mode", "batch_dependence", "dynamic", "state_changed")


@pytest.mark.parametrize("fault", ["none", "random", "softmax", "batch_dependence", "dynamic", "state_changed"])
def test_pipeline_contract_names_the_fault_and_only_it(fault: str) -> None:
    _, images, labels = digits_net()
    model = Planted(fault)
    random_state = torch.random.get_rng_state()
    functions = (torch.autograd.grad, torch.autograd.backward)
    result = PipelineContract().measure(Pipeline(model), inputs(images, labels))
    expected = {name: float(name == fault) for name in FACTS}
    if fault == "random":
        expected["batch_dependence"] = np.nan
    for name in FACTS:
        assert np.array_equal(result[name], np.full(100, expected[name]), equal_nan=True), name
    assert int(model.calls) == 0 and torch.equal(random_state, torch.random.get_rng_state())
    assert functions == (torch.autograd.grad, torch.autograd.backward)


def test_pipeline_contract_of_a_model_in_train_mode_and_of_a_random_defense() -> None:
    _, images, labels = digits_net()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(784, 10)]
        model = torch.nn.Sequential(*layers).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = PipelineContract().measure(Pipeline(model), inputs(images, labels))
    assert {name for name in FACTS if result[name][0] == 1} == {"train_mode", "batch_dependence", "state_changed"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    noisy = PipelineContract().measure(Pipeline(digits_net()[0], defense=Dither()), inputs(images, labels))
    assert {name for name in FACTS if noisy[name][0] == 1} == {"random"}
    alone = PipelineContract().measure(Pipeline(digits_net()[0]), inputs(images[:1], labels[:1]))
    assert np.isnan(alone["batch_dependence"]).all() and alone["random"][0] == 0


# ------------------------------------------------------------------------------------------------ minimal perturbation


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimal_perturbation_of_a_linear_model(norm: str) -> None:
    model, images, labels = linear_samples(12)
    w = model.w.numpy()
    true = 4 / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    result = MinPerturbation(steps=15, searches=12).measure(
        Pipeline(model), inputs(images, labels, eps=true / 3, norm=norm)
    )
    assert (result["found"] == 1).all()
    assert (result["distance"] >= true * (1 - 1e-5)).all()  # an upper bound, always
    assert (result["distance"] <= true * 1.02).all()


def test_minimal_perturbation_without_a_boundary_and_with_saturated_logits() -> None:
    _, images, labels = linear_samples(4)
    nothing = MinPerturbation().measure(Pipeline(Bounded()), inputs(images, labels * 0))
    assert (nothing["found"] == 0).all() and np.isnan(nothing["distance"]).all()
    model, images, labels = digits_net()
    given = inputs(images[:40], labels[:40])
    plain = MinPerturbation().measure(Pipeline(model), given)
    scaled = MinPerturbation().measure(Pipeline(Scaled(model, 1000.0)), given)
    right = predict(model, images[:40])[0].argmax(1) == labels[:40]
    assert np.array_equal(np.isfinite(plain["distance"]), right) and np.array_equal(plain["found"] == 1, right)
    assert np.allclose(plain["distance"][right], scaled["distance"][right], rtol=0.05)
