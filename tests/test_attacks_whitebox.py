"""The white-box attacks against closed forms, SciPy's solvers, torchattacks and Foolbox."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_samples import Curved64, Scaled, digits_net, linear_samples

from windtunnel.attacks import losses
from windtunnel.attacks.apgd import APGD
from windtunnel.attacks.base import Attack
from windtunnel.attacks.boundary import gap_distance, ranked_wrong_classes, shortest_step
from windtunnel.attacks.cw import CW
from windtunnel.attacks.deepfool import DeepFool
from windtunnel.attacks.fab import FAB
from windtunnel.attacks.mim import MIM, unit_l1
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.pma import PMA
from windtunnel.backend import torch
from windtunnel.engine import predict, run_attack

ROOT = Path(__file__).parent.parent


def name_of(attack: Attack) -> str:
    marks = [str(getattr(attack, key)) for key in ("loss", "terms", "targeted", "targets") if hasattr(attack, key)]
    return "-".join([type(attack).__name__, *marks])


def distances_of(x: np.ndarray, x0: np.ndarray, norm: str) -> np.ndarray:
    delta = (x.astype(np.float64) - x0).reshape(len(x), -1)
    return np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)


# --------------------------------------------------------------------------------------------------------- closed forms


class Planes64(torch.nn.Module):
    """Class 0 against several half-spaces: logits (0, w_k . x + b_k), without a matrix product.

    The fooled region is a union of half-spaces, so the distance to it is the smallest of the distances to each.
    """

    def __init__(self, w: np.ndarray, b: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("w", torch.from_numpy(w))
        self.register_buffer("b", torch.from_numpy(b))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = (x.flatten(1).double()[:, None] * self.w).sum(2) + self.b
        return torch.cat([torch.zeros_like(z[:, :1]), z], dim=1)


@cache
def planes() -> tuple[Planes64, np.ndarray, np.ndarray]:
    """30 images at 0.5 +- .1 that are class 0, and 4 boundaries whose weights differ in length by a factor of 8."""
    draw = np.random.default_rng(3)
    w = draw.normal(size=(4, 48)) * np.array([1.0, 2.0, 4.0, 8.0])[:, None]
    x = draw.uniform(0.4, 0.6, (30, 3, 4, 4)).astype(np.float32)
    b = -np.abs(w).sum(1) * 0.5 * np.array([0.40, 0.33, 0.32, 0.33]) - w.sum(1) * 0.5
    return Planes64(w, b), x, np.zeros(30, dtype=np.int64)


def optimum(norm: str) -> tuple[np.ndarray, np.ndarray]:
    """(distance to the nearest boundary [N], which it is [N])."""
    model, x, _ = planes()
    w, b = model.w.numpy(), model.b.numpy()
    gaps = -(x.reshape(len(x), -1).astype(np.float64) @ w.T + b)
    ways = gaps / (np.abs(w).sum(1) if norm == "linf" else np.linalg.norm(w, axis=1))
    assert (gaps > 0).all() and ways.max() < 0.4 * (1 if norm == "linf" else 6)
    return ways.min(1), ways.argmin(1)


MINIMAL = [
    (DeepFool(steps=6), 1.0201),
    (FAB(steps=12, targets=4), 1.001),
    (FAB(steps=12, targets=4, final_search=0), 1.01),
    (FAB(steps=12, targeted=False), 1.001),
    (CW(searches=6), 1.03),
]


@pytest.mark.parametrize(("attack", "factor", "norm"), [(a, f, n) for a, f in MINIMAL for n in a.norms])
def test_distance_to_a_linear_boundary(attack: Attack, factor: float, norm: str) -> None:
    model, images, labels = linear_samples(12)
    w = model.w.numpy()
    nearest = 4.0 / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    found = run_attack(model, attack, images, labels, range(12), eps=4 * nearest, norm=norm, mode="full")
    ratio = distances_of(found.best, images, norm) / nearest
    assert found.success.all() and ratio.max() < factor and ratio.min() > 1 - 1e-6
    # The same answer whatever the budget is, down to the distance itself; nothing below it.
    tight = {"norm": norm, "mode": "search", "seed": 1}
    assert run_attack(model, attack, images, labels, range(12), eps=1.001 * factor * nearest, **tight).success.all()
    assert not run_attack(model, attack, images, labels, range(12), eps=0.99 * nearest, **tight).success.any()


@pytest.mark.parametrize(("attack", "factor", "norm"), [(a, f, n) for a, f in MINIMAL for n in a.norms])
def test_distance_to_the_nearest_of_several_boundaries(attack: Attack, factor: float, norm: str) -> None:
    model, images, labels = planes()
    best, which = optimum(norm)
    runner_up = ranked_wrong_classes(model(torch.from_numpy(images)), torch.from_numpy(labels), 1)[:, 0].numpy() - 1
    assert (runner_up != which).mean() > 0.5 and len(set(which)) >= 2, "the most likely class would be the nearest one"
    found = run_attack(model, attack, images, labels, range(30), eps=5.0, norm=norm, mode="full")
    ratio = distances_of(found.best, images, norm) / best
    assert found.success.all() and ratio.min() > 1 - 1e-6
    if isinstance(attack, CW):  # a descent on the margin: it ends at the boundary of the most likely class
        first = model.w[0].numpy()
        gap = -(images.reshape(30, -1).astype(np.float64) @ first + float(model.b[0]))
        assert (runner_up == 0).all() and (ratio < factor * gap / np.linalg.norm(first) / best).all()
    else:
        assert ratio.max() < factor


LINEAR = [
    APGD(steps=20, loss="dlr_targeted", targets=4),
    APGD(steps=20, loss="margin_targeted", targets=4),
    MIM(steps=20),
    MIM(steps=20, loss="probability_margin"),
    MIM(steps=20, loss="comp-sum-0"),
    MIM(steps=20, loss="comp-sum-2"),
    PMA(steps=20),
    PMA(steps=20, terms="logit"),
]


@pytest.mark.parametrize(("attack", "norm"), [(a, n) for a in LINEAR for n in a.norms])
def test_worst_case_of_a_linear_model(attack: Attack, norm: str) -> None:
    model, images, labels = linear_samples(12)
    w = model.w.numpy()
    critical = 4.0 / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    hit = run_attack(model, attack, images, labels, range(12), eps=1.02 * critical, norm=norm)
    miss = run_attack(model, attack, images, labels, range(12), eps=0.98 * critical, norm=norm, mode="full")
    assert hit.success.all() and not miss.success.any()
    assert not hit.bound_violation.any() and not miss.bound_violation.any()
    assert np.allclose(miss.best_margin, -0.02 * 4.0, atol=0.004 * 4.0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_target_after_the_other_finds_the_boundary_that_an_untargeted_run_may_miss(norm: str) -> None:
    model, images, labels = planes()
    best, which = optimum(norm)
    options: dict[str, Any] = {"norm": norm, "mode": "full"}
    for eps in np.quantile(best, [0.2, 0.8]):
        reachable = best * 1.01 < eps
        attack = APGD(steps=20, loss="margin_targeted", targets=4)
        found = run_attack(model, attack, images, labels, range(30), eps=float(eps), **options)
        assert found.success[reachable].all() and not found.success[best > eps].any()
        one = run_attack(
            model,
            APGD(steps=20, loss="margin_targeted", target=1),
            images,
            labels,
            range(30),
            eps=float(eps),
            **options,
        )
        assert (one.success <= found.success).all() and (one.success < found.success).any()
        assert (found.n_backward == 4 * 21).all() and (one.n_backward == 21).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shortest_step_in_the_box_is_the_solvers(norm: str) -> None:
    from scipy.optimize import linprog, minimize

    draw = np.random.default_rng(0)
    n, d = 60, 6
    x = np.where(draw.random((n, d)) < 0.4, draw.integers(0, 2, (n, d)), draw.random((n, d)))
    w = draw.normal(size=(n, d)) * (draw.random((n, d)) < 0.8)
    room_up = np.where(w > 0, w * (1 - x), -w * x).sum(1)  # the most that w . d can be
    room_down = np.where(w > 0, -w * x, w * (1 - x)).sum(1)
    gap = np.where(np.arange(n) % 2 == 0, room_up, room_down) * draw.uniform(0, 0.98, n)
    step = shortest_step(torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(gap), norm).numpy()
    assert np.allclose((w * step).sum(1), gap, atol=1e-9)
    assert (x + step).min() > -1e-12 and (x + step).max() < 1 + 1e-12
    for i in range(n):
        bounds = [(-x[i, j], 1 - x[i, j]) for j in range(d)]
        if norm == "linf":  # variables d and t: minimise t with |d_j| <= t
            both = np.vstack([np.hstack([np.eye(d), -np.ones((d, 1))]), np.hstack([-np.eye(d), -np.ones((d, 1))])])
            answer = linprog(
                [0] * d + [1], A_ub=both, b_ub=np.zeros(2 * d), A_eq=[[*w[i], 0]], b_eq=[gap[i]],
                bounds=[*bounds, (0, None)],
            )  # fmt: skip
            assert answer.success and abs(np.abs(step[i]).max() - answer.fun) < 1e-8
        else:
            answer = minimize(
                lambda s: s @ s, np.zeros(d), jac=lambda s: 2 * s, bounds=bounds, method="SLSQP",
                constraints={"type": "eq", "fun": lambda s, i=i: w[i] @ s - gap[i], "jac": lambda s, i=i: w[i]},
                options={"ftol": 1e-14, "maxiter": 500},
            )  # fmt: skip
            assert answer.success and np.allclose(step[i], answer.x, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_shortest_step_at_its_limits(norm: str) -> None:
    x = torch.tensor([[0.25, 1.0, 0.0, 0.5]]).repeat(4, 1)
    w = torch.tensor([[1.0, 1.0, -1.0, 0.0], [1e-30, 1e-30, 1e-30, 0.0], [0.0, 0.0, 0.0, 0.0], [2e30, 0.0, 0.0, 0.0]])
    step = shortest_step(x, w, torch.tensor([9.0, 0.5e-30, 1.0, 1e30]), norm)
    # More than the whole box has: its corner. Tiny normals do not underflow, large ones do not overflow, zero stays.
    assert torch.equal(step[0], torch.tensor([0.75, 0.0, 0.0, 0.0]))
    assert torch.allclose(step[1], torch.tensor([0.25, 0.0, 0.25, 0.0]))
    assert torch.equal(step[2], torch.zeros(4)) and torch.allclose(step[3], torch.tensor([0.5, 0.0, 0.0, 0.0]))
    assert torch.isinf(gap_distance(w[2:3], torch.ones(1), norm)).all()


# ------------------------------------------------------------------------------------ saturated pixels, shift and scale


@pytest.mark.parametrize(
    ("attack", "norm"),
    [(DeepFool(steps=10), "linf"), (DeepFool(steps=10), "l2"), (FAB(steps=12, targets=1), "linf"),
     (FAB(steps=12, targets=1), "l2"), (CW(steps=60), "l2")],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)  # fmt: skip
def test_images_of_zeros_and_ones_reach_the_optimum_inside_the_box(attack: Attack, norm: str) -> None:
    """Pixels at the edge of the box that can only move inwards: half of them cannot go where the gradient points."""
    model = linear_samples(2)[0]
    images = np.random.default_rng(5).integers(0, 2, (10, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    score = model.score(torch.from_numpy(images)).numpy()
    steps = shortest_step(
        torch.from_numpy(images), model.w.view(1, 3, 8, 8).expand(10, -1, -1, -1), torch.from_numpy(-score), norm
    )
    best = distances_of(images + steps.numpy(), images, norm)
    found = run_attack(model, attack, images, labels, range(10), eps=1.3 * best.max(), norm=norm, mode="full")
    ratio = distances_of(found.best, images, norm) / best
    assert found.success.all() and ratio.min() > 1 - 1e-5 and ratio.max() < 1.03
    moved = found.best != images
    assert moved.mean() > 0.2 and np.isin(images[moved], (0.0, 1.0)).all()


STEADY = [
    APGD(steps=8, loss="dlr_targeted", targets=3),
    APGD(steps=8, loss="margin_targeted", targets=3),
    MIM(steps=10, loss="margin", step_size=0.25),
    MIM(steps=10, loss="dlr", step_size=0.25),
    PMA(steps=10, terms="logit"),
    DeepFool(steps=5, candidates=5),
    FAB(steps=6, targets=3),
    FAB(steps=6, targets=4, targeted=False),
]


@pytest.mark.parametrize(
    "attack", [*STEADY, PMA(steps=10), MIM(), CW(steps=25, searches=5, learning_rate=0.02)], ids=name_of
)
def test_a_shift_of_the_logits_changes_no_decision(attack: Attack) -> None:
    model, images, labels = digits_net()
    images, labels = images[:60], labels[:60]
    norm = attack.norms[0]
    options: dict[str, Any] = {"eps": 0.05 if norm == "linf" else 0.7, "norm": norm}
    plain = run_attack(model, attack, images, labels, range(60), **options)
    other = run_attack(Scaled(model, 1.0, -100.0), attack, images, labels, range(60), **options)
    assert (plain.success != other.success).sum() <= 1 and 0.1 < plain.success.mean() < 1


@pytest.mark.parametrize("factor", [3.0, 1000.0])
@pytest.mark.parametrize("attack", STEADY, ids=name_of)
def test_scaled_and_saturated_logits_change_no_decision(attack: Attack, factor: float) -> None:
    model, images, labels = digits_net()
    images, labels = images[:60], labels[:60]
    options: dict[str, Any] = {"eps": 0.05, "norm": "linf"}
    plain = run_attack(model, attack, images, labels, range(60), **options)
    other = run_attack(Scaled(model, factor), attack, images, labels, range(60), **options)
    assert (plain.success != other.success).sum() <= 1 and 0.1 < plain.success.mean() < 1
    assert not other.zero_gradient.any()


def test_cw_finds_its_c_on_saturated_logits() -> None:
    model, images, labels = digits_net()
    images, labels, attack = images[:16], labels[:16], CW(steps=50, searches=7)
    found = [
        run_attack(Scaled(model, factor), attack, images, labels, range(16), eps=5.0, norm="l2", mode="full")
        for factor in (1.0, 3.0, 1000.0)
    ]
    ways = [distances_of(result.best, images, "l2") for result in found]
    assert all(np.array_equal(result.success, found[0].success) for result in found) and found[0].success.mean() > 0.8
    assert abs(np.median(ways[1]) / np.median(ways[0]) - 1) < 0.05
    assert abs(np.median(ways[2]) / np.median(ways[0]) - 1) < 0.15


@pytest.mark.parametrize("attack", [PMA(steps=10), MIM(), MIM(loss="probability_margin")], ids=name_of)
def test_attacks_on_probabilities_say_so_when_they_are_frozen(attack: Attack) -> None:
    model, images, labels = digits_net()
    frozen = run_attack(Scaled(model, 1000.0), attack, images, labels, range(100), eps=0.05, norm="linf", mode="full")
    assert frozen.zero_gradient[frozen.clean_correct].mean() > 0.5
    assert not frozen.nan_gradient.any() and np.isfinite(frozen.last).all()


def test_momentum_survives_gradients_of_zero_and_of_any_size() -> None:
    g = torch.tensor([[3.0, -1.0], [0.0, 0.0], [3e-40, -1e-40], [3e38, -3e38]])
    out = unit_l1(g)
    assert torch.allclose(out[0], torch.tensor([0.75, -0.25])) and torch.equal(out[1], torch.zeros(2))
    assert torch.allclose(out[2], torch.tensor([0.75, -0.25]), atol=1e-4)
    assert torch.allclose(out[3], torch.tensor([0.5, -0.5]))


# ----------------------------------------------------------------------------------------------------------- the losses


def test_losses_on_probabilities_agree_with_their_formulas() -> None:
    draw = np.random.default_rng(0)
    z = draw.normal(size=(50, 7)) * 3
    y = draw.integers(0, 7, 50)
    e = np.exp(z)
    p = e / e.sum(1, keepdims=True)
    own = p[np.arange(50), y]
    masked = p.copy()
    masked[np.arange(50), y] = -1
    tensors = torch.from_numpy(z), torch.from_numpy(y)
    assert np.allclose(losses.probability_margin(*tensors), masked.max(1) - own)
    assert np.allclose(losses.true_probability(*tensors), -own)
    assert np.allclose(losses.wrong_probability(*tensors), masked.max(1))
    u = np.exp(z - z[np.arange(50), y][:, None]).sum(1) - 1
    known = {0: u, 0.5: 2 * (np.sqrt(1 + u) - 1), 1: np.log1p(u), 1.5: 2 * (1 - np.sqrt(own)), 2: 1 - own}
    for tau, value in known.items():
        assert np.allclose(losses.comp_sum(*tensors, tau), value, rtol=1e-9), tau
        assert np.allclose(losses.loss_named(f"comp-sum-{tau}")(*tensors), value, rtol=1e-9)
    assert np.allclose(losses.loss_named("comp-sum-1.7")(*tensors), (1 - own**0.7) / 0.7)
    target = torch.from_numpy((y + 1) % 7)
    gap = z[np.arange(50), (y + 1) % 7] - z[np.arange(50), y]
    assert np.allclose(losses.margin_targeted(*tensors, target), gap)


def test_losses_are_safe_for_large_logits() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0, 5.0], [-1e4, 1e4, 0.0, 5.0], [-1e4, -1e4, -1e4, -1e4], [1e4, 1e4, 0.0, 0.0]])
    names = [*losses.LOSSES, "comp-sum-0.1", "comp-sum-3", "comp-sum-30"]
    for name in names:
        for y in (0, 1, 2):
            leaf = z.clone().requires_grad_()
            value = losses.loss_named(name)(leaf, torch.full((4,), y))
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            assert torch.isfinite(value).all() and torch.isfinite(gradient).all(), (name, y)
    # Far on the wrong side the loss still rises, where an exponential would have overflowed.
    leaf = torch.tensor([[-500.0, 500.0], [-501.0, 501.0]], requires_grad=True)
    value = losses.loss_named("comp-sum-0")(leaf, torch.zeros(2, dtype=torch.long))
    assert value[1] > value[0] and (torch.autograd.grad(value.sum(), leaf)[0][:, 0] < 0).all()


@pytest.mark.parametrize(
    "name", ["comp-sum-", "comp-sum--1", "comp-sum-nan", "comp-sum-inf", "comp-sum", "dlr_targeted"]
)
def test_unknown_losses_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        losses.loss_named(name)
    with pytest.raises(ValueError):
        MIM(loss=name)


# ------------------------------------------------------------------------------------------------ independent libraries


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_mim_equals_torchattacks(decay: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    theirs = torchattacks.MIFGSM(model, eps=0.06, alpha=0.012, steps=10, decay=decay)(
        torch.from_numpy(images), torch.from_numpy(labels)
    ).numpy()
    ours = run_attack(
        model, MIM(steps=10, step_size=0.2, decay=decay), images, labels, range(100), eps=0.06, norm="linf", mode="full"
    ).last
    assert (np.abs(ours - theirs).max(axis=(1, 2, 3)) < 1e-6).mean() > 0.95 and np.abs(ours - images).max() > 0.05


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
@pytest.mark.parametrize("targeted", [False, True])
def test_fab_finds_the_distances_of_the_public_code(norm: str, eps: float, targeted: bool) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    right = predict(model, images)[0].argmax(1) == labels
    images, labels = images[right][:16], labels[right][:16]
    oracle = torchattacks.FAB(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=15, n_classes=10)
    oracle.target_class = 2  # the runner-up
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        oracle.multi_targeted = True
        theirs = (oracle.attack_single_run_targeted if targeted else oracle.attack_single_run)(x, y)
    attack = FAB(steps=15, targeted=targeted, targets=1 if targeted else 9, final_search=0)
    ours = run_attack(model, attack, images, labels, range(16), eps=5.0, norm=norm, mode="full")
    ways, known = distances_of(ours.best, images, norm), distances_of(theirs.numpy(), images, norm)
    assert ours.success.all() and (known > 0).all()
    assert abs(np.median(ways / known) - 1) < 0.01 and np.mean(np.abs(ways / known - 1) < 0.03) > 0.85
    searched = run_attack(
        model, FAB(steps=15, targeted=targeted, targets=attack.targets), images, labels, range(16), eps=5.0, norm=norm,
        mode="full",
    )  # fmt: skip
    shorter = distances_of(searched.best, images, norm) / ways
    assert shorter.max() <= 1 and shorter.mean() < 1 - 1e-4


def test_deepfool_and_cw_are_not_farther_than_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = digits_net()
    images, labels = images[:16], labels[:16]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for norm, ours, theirs in (
        ("linf", DeepFool(steps=10), foolbox.attacks.LinfDeepFoolAttack(steps=10, loss="logits")),
        ("l2", DeepFool(steps=10), foolbox.attacks.L2DeepFoolAttack(steps=10, loss="logits")),
        ("l2", CW(steps=50, searches=7), foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=7, steps=50)),
    ):
        _, raw, fooled = theirs(wrapped, x, y, epsilons=None)
        found = run_attack(model, ours, images, labels, range(16), eps=5.0, norm=norm, mode="full")
        both = fooled.numpy() & found.success & found.clean_correct
        ways = distances_of(found.best, images, norm)[both]
        known = distances_of(raw.numpy(), images, norm)[both]
        assert found.success.mean() > 0.8 and both.sum() >= 12
        assert np.median(ways / known) < 1.025 and ways.mean() < 1.03 * known.mean(), (norm, type(ours).__name__)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 1.0)])
def test_targets_one_after_the_other_agree_with_torchattacks(norm: str, eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    right = predict(model, images)[0].argmax(1) == labels
    images, labels = images[right][:40], labels[right][:40]
    with torch.random.fork_rng(devices=[]):
        oracle = torchattacks.APGDT(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=10, n_classes=10)
        fooled = (
            model(oracle(torch.from_numpy(images), torch.from_numpy(labels))).argmax(1).ne(torch.from_numpy(labels))
        )
    attack = APGD(steps=10, loss="dlr_targeted", targets=9)
    ours = run_attack(model, attack, images, labels, range(40), eps=eps, norm=norm).success
    assert 5 < int(fooled.sum()) < 40 and abs(int(ours.sum()) - int(fooled.sum())) <= 1


# --------------------------------------------------------------------------------------------------- schedules and cost


def test_pma_follows_its_schedule() -> None:
    """Losses, step sizes and branches, as written in the paper's code, replayed by hand on a curved model."""
    model = Curved64()
    images = np.random.default_rng(0).uniform(0.3, 0.7, (6, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    attack = PMA(steps=8)
    seen: list[torch.Tensor] = []

    class Noting(PMA):
        def step(self, rows: Any, *rest: Any) -> Any:
            seen.append(rows["x"].clone())
            return super().step(rows, *rest)

    eps = 0.002
    run_attack(model, Noting(steps=8), images, labels, range(6), eps=eps, norm="linf", mode="full")
    assert len(seen) == attack.max_steps == 17
    x0, y = torch.from_numpy(images), torch.from_numpy(labels)[:, None]
    for r in (0, 1):
        x = seen[9 * r]
        assert (x - x0).abs().max() > 0.9 * eps
        for i in range(8):
            leaf = x.clone().requires_grad_()
            p = model(leaf).softmax(1)
            own, other = p.gather(1, y)[:, 0], p.scatter(1, y, -1.0).amax(1)
            value = own if i == 0 else ((other if r else -own) if i < 4 else other - own)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
            length = eps * (1 + np.cos(np.pi * ((i - 4 - 1) if i > 4 else (i - 1)) / 4))
            x = (x + length * gradient.sign()).clamp(x0 - eps, x0 + eps)
            if 9 * r + i + 1 < len(seen):
                assert torch.allclose(seen[9 * r + i + 1], x, atol=1e-7), (r, i)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=4, loss="margin_targeted", targets=3, restarts=2),
        MIM(steps=4, restarts=2),
        PMA(steps=4, restarts=2),
        DeepFool(steps=2, restarts=2),
        FAB(steps=3, targets=3, restarts=2),
        FAB(steps=3, targeted=False, targets=3, restarts=2),
        CW(steps=5, searches=3, restarts=2),
    ],
    ids=name_of,
)
def test_rows_of_different_age_share_a_batch_without_knowing_it(attack: Attack) -> None:
    """Bit for bit: ages, targets, restarts, searches and generators belong to the row; so do the counts."""
    model = Curved64()
    images = np.random.default_rng(0).uniform(0.3, 0.7, (30, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    norm = attack.norms[0]
    options: dict[str, Any] = {"eps": 0.01 if norm == "linf" else 0.1, "norm": norm}
    one = run_attack(model, attack, images, labels, range(30), batch_size=64, **options)
    order = np.random.default_rng(1).permutation(30)
    two = run_attack(model, attack, images[order], labels[order], order.tolist(), batch_size=5, **options)
    for field in ("best", "last", "n_forward", "n_backward"):
        assert np.array_equal(getattr(one, field)[order], getattr(two, field)), field
    assert len(set(one.n_forward.tolist())) >= 2 and 0 < one.success.sum() < 30, "too few ages to mix"


class Watched(torch.nn.Module):
    """The same model; it notes the sum of all pixels of every batch it is asked about."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.sums = model, []
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sums.append(float(x.detach().double().sum()))
        return self.model(x)


@pytest.mark.parametrize(
    ("attack", "backward", "forward"),
    [
        (APGD(steps=5, loss="dlr_targeted", targets=3, restarts=2), 6 * 3 * 2, 0),
        (APGD(steps=5, loss="dlr_targeted", target=3, restarts=2), 6 * 2, 0),
        (MIM(steps=5, restarts=2), 11, 0),
        (PMA(steps=5, restarts=2), 6 * 4 - 1, 0),
        (DeepFool(steps=5, candidates=3, restarts=2), 6 * 3 * 2, 0),
        (FAB(steps=5, targets=3, restarts=2, final_search=0), 5 * 3 * 2, 5 * 3 * 2),
        (FAB(steps=5, targeted=False, targets=3, restarts=2, final_search=4), 12 * 3, 12),
        (CW(steps=5, searches=4, restarts=2), 40, 0),
    ],
    ids=lambda v: name_of(v) if isinstance(v, Attack) else str(v),
)
def test_cost_and_restarts(attack: Attack, backward: int, forward: int) -> None:
    model, images, labels = digits_net()
    images, labels = images[:20], labels[:20]
    norm = attack.norms[0]
    options: dict[str, Any] = {"eps": 0.05 if norm == "linf" else 0.7, "norm": norm, "mode": "full"}
    twice = run_attack(model, attack, images, labels, range(20), **options)
    assert (twice.n_backward == backward).all()
    # Beside the gradients: the clean image, the ranking of the classes, the judgement of the end.
    extra = twice.n_forward - backward - forward
    assert (extra == extra[0]).all() and 2 <= extra[0] <= 3
    asked: list[list[float]] = []
    for seed in (0, 0, 1):
        watched = Watched(model)
        run_attack(watched, attack, images, labels, range(20), seed=seed, **options)
        asked.append(watched.sums)
    assert asked[0] == asked[1] != asked[2], "the restarts do not draw from the sample's own stream"
    if not isinstance(attack, APGD | PMA):  # the first run is the same, and a further one can only help
        settings = {**vars(attack), "restarts": 1}
        once = run_attack(model, type(attack)(**settings), images, labels, range(20), **options)
        assert (once.success <= twice.success).all()
        if attack.minimal_norm and not isinstance(attack, FAB):
            kept = once.success
            ways = [distances_of(result.best, images, norm)[kept] for result in (once, twice)]
            assert (ways[1] <= ways[0]).all()


def test_fewer_wrong_classes_than_targets() -> None:
    model, images, labels = linear_samples(6)
    for attack in (APGD(steps=3, loss="margin_targeted", targets=9), FAB(steps=3), DeepFool(steps=3)):
        found = run_attack(model, attack, images, labels, range(6), eps=0.1, norm="linf", mode="full")
        assert found.success.all() and not found.nan.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: APGD(targets=3),
        lambda: APGD(loss="margin_targeted"),
        lambda: APGD(loss="dlr_targeted", targets=3, target=1),
        lambda: APGD(loss="dlr_targeted", targets=0),
        lambda: MIM(step_size=0),
        lambda: MIM(steps=0),
        lambda: PMA(terms="logits"),
        lambda: PMA(branches=3),
        lambda: PMA(steps=1),
        lambda: DeepFool(candidates=0),
        lambda: DeepFool(overshoot=0),
        lambda: FAB(beta=1.0),
        lambda: FAB(eta=0.9),
        lambda: FAB(final_search=-1),
        lambda: CW(initial_c=0),
        lambda: CW(confidence=-1),
        lambda: CW(searches=0),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ValueError):
        make()


# ------------------------------------------------------------------------------------------------- a network of the run


@cache
def shipped(n: int = 32) -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    from windtunnel.images import photodigits
    from windtunnel.models.load import load_model

    chosen = photodigits.build("test")
    images = chosen.images[:n].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    model = load_model(ROOT / "resources/models/digits-cnn")
    return model, np.ascontiguousarray(images), np.asarray(chosen.labels[:n], dtype=np.int64)


@pytest.mark.parametrize(
    "attack",
    [
        APGD(steps=15, loss="dlr_targeted", targets=3),
        APGD(steps=20, loss="probability_margin"),
        MIM(steps=20, step_size=0.25, loss="margin"),
        PMA(steps=30),
        PMA(steps=30, terms="logit"),
        FAB(steps=20, targets=3),
    ],
    ids=name_of,
)
def test_not_weaker_than_pgd_on_a_shipped_model(attack: Attack) -> None:
    model, images, labels = shipped()
    options: dict[str, Any] = {"eps": 4 / 255, "norm": "linf"}
    pgd = run_attack(model, PGD(steps=10), images, labels, range(32), **options)
    ours = run_attack(model, attack, images, labels, range(32), **options)
    assert 0.4 < pgd.success.mean() < 1 and ours.success.sum() >= pgd.success.sum() - 1
    assert not ours.bound_violation.any()
