"""Transfer and ensemble attacks: formulas by hand, closed forms, torchattacks, and rows that do not know each other."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attack_samples import Curved64, Linear64, Scaled, digits_net, linear_samples

from windtunnel.attacks.adaea import AdaEA
from windtunnel.attacks.ascent import accumulated, levelled, unjudged_gradient
from windtunnel.attacks.base import Attack
from windtunnel.attacks.cwa import CWA
from windtunnel.attacks.ensemble_pgd import EnsemblePGD
from windtunnel.attacks.input_transforms import Resize, gaussian_weights, smoothed
from windtunnel.attacks.losses import ce, margin
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.attacks.svre import SVRE
from windtunnel.attacks.transfer import Transfer
from windtunnel.backend import torch
from windtunnel.engine import Pipeline, RowRandom, predict, run_attack
from windtunnel.models.base import ModelNotFrozen
from windtunnel.models.ensemble import Ensemble, MembersDisagree, ensemble_of

EVERYTHING = {"nesterov": True, "scales": 2, "diversity": 0.7, "kernel": 3, "points": 3}
FAMILY: dict[str, Attack] = {
    "mi": Transfer(steps=4),
    "ni": Transfer(steps=4, nesterov=True),
    "di": Transfer(steps=4, diversity=0.7),
    "ti": Transfer(steps=4, kernel=3),
    "si": Transfer(steps=4, scales=3),
    "vmi": Transfer(steps=4, points=4),
    "all": Transfer(steps=4, **EVERYTHING),
}
ENSEMBLE: dict[str, Attack] = {
    "by-loss": EnsemblePGD(steps=4),
    "by-loss-mi": EnsemblePGD(steps=4, momentum=1.0, random_start=False),
    "svre": SVRE(steps=3, inner_steps=4),
    "cwa": CWA(steps=4),
    "adaea": AdaEA(steps=4),
}


def ids(n: int) -> list[str]:
    return [f"sample-{i}" for i in range(n)]


def curved(count: int) -> torch.nn.Module:
    members = [Curved64(seed=seed) for seed in range(count)]
    return members[0] if count == 1 else ensemble_of(members, image_shape=(3, 8, 8))


def curved_samples(model: torch.nn.Module, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n images and the labels that the model gives them, all near its boundary."""
    images = np.random.default_rng(0).uniform(0.3, 0.7, (4 * n, 3, 8, 8)).astype(np.float32)
    logits = predict(model, images)[0]
    near = np.sort(np.argsort(np.abs(logits[:, 0] - logits[:, 1]))[:n])
    return images[near], logits[near].argmax(1)


class Slope:
    """A model as numpy sees it: the gradient of its loss at one image, from autograd, without engine or query."""

    def __init__(self, model: torch.nn.Module, label: int, loss: Any = ce) -> None:
        self.model, self.label, self.loss = model, torch.tensor([label]), loss

    def __call__(self, x: np.ndarray) -> np.ndarray:
        leaf = torch.from_numpy(x[None].astype(np.float32)).requires_grad_()
        value = self.loss(self.model(leaf), self.label).sum()
        return torch.autograd.grad(value, leaf)[0][0].numpy().astype(np.float64)


# ------------------------------------------------------------------------------------------------------- the ensemble


def test_an_ensemble_is_the_mean_of_its_members_logits() -> None:
    members = [Curved64(seed=seed) for seed in range(3)]
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Ensemble(members)(x), sum(member(x) for member in members) / 3)
    assert torch.equal(Ensemble(members[:1])(x), members[0](x))
    assert len(Ensemble(members).members) == 3 and not Ensemble(members).training


def test_members_that_do_not_fit_are_refused() -> None:
    class Few(Linear64):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[:, :3]

    with pytest.raises(MembersDisagree, match="whole: 4, few: 3"):
        ensemble_of({"whole": Linear64(), "few": Few()}, image_shape=(3, 8, 8))
    with pytest.raises(MembersDisagree, match="member 0: 4, member 1: 3"):
        ensemble_of([Linear64(), Few()])(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="2 members, 1 names"):
        Ensemble([Linear64(), Linear64()], names=["one"])
    with pytest.raises(ValueError, match="at least one"):
        Ensemble([])
    with pytest.raises(ModelNotFrozen):
        Ensemble([Linear64(), Linear64().train()])


class Asking:
    """A query for tests: the members by autograd, nothing counted."""

    def __init__(self, model: torch.nn.Module, y: torch.Tensor) -> None:
        self.pipeline, self.y = Pipeline(model), y
        self.n_members, self.n_classes = len(self.pipeline.members), 4

    def logits(self, x: torch.Tensor, *, member: int | None = None) -> torch.Tensor:
        return self.pipeline.logits(x, member)

    def gradient(self, x: torch.Tensor, loss: Any, *, member: int | None = None) -> tuple[Any, Any, Any]:
        leaf = x.detach().requires_grad_()
        logits = self.pipeline.differentiable(leaf, member)
        values = loss(logits, self.y)
        return logits.detach(), values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


@pytest.mark.parametrize("loss", [ce, margin])
def test_a_question_that_is_not_judged_has_the_gradient_of_the_whole_ensemble(loss: Any) -> None:
    for count in (1, 2, 3):
        model = curved(count)
        images, labels = curved_samples(model, 6)
        x, y = torch.from_numpy(images), torch.from_numpy(labels)
        query = Asking(model, y)
        expected = query.gradient(x, loss)[2]
        found = unjudged_gradient(query, x, y, loss)  # type: ignore[arg-type]
        assert expected.abs().max() > 1e-3 and torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


# ----------------------------------------------------------------------------------------------------- the parts


def test_normalisation_leaves_zero_rows_at_zero_and_tiny_ones_alive() -> None:
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    gradient[1] = 0
    gradient[2] *= 1e-36
    size = levelled(gradient).abs().flatten(1).mean(1)
    assert torch.allclose(size, torch.tensor([1.0, 0, 1, 1]), rtol=1e-5)
    momentum = torch.ones_like(gradient)
    assert torch.equal(accumulated(momentum, gradient, 0.5)[1], 0.5 * momentum[1])
    assert accumulated(momentum, gradient, 0.0) is gradient


@pytest.mark.parametrize("shape", [(32, 32), (20, 30)])
def test_resize_is_that_of_torch_and_its_transpose_is_exact(shape: tuple[int, int]) -> None:
    x = torch.rand(40, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    dice = RowRandom.keyed(3, ids(40)).uniform(4).double()
    resize = Resize.drawn(x, 0.6, 0.8, RowRandom.keyed(3, ids(40)))
    mapped, sizes, places = resize(x), set(), set()
    for row in range(40):
        if not bool(resize.moved[row]):
            assert torch.equal(mapped[row], x[row])
            continue
        assert dice[row, 0] < 0.6
        inner, corner = [], []
        for side, place in zip(shape, dice[row, 2:], strict=True):
            least = int(0.8 * side)
            inner.append(least + int(dice[row, 1] * (side - least)))
            corner.append(int(place * (side - inner[-1] + 1)))
        small = torch.nn.functional.interpolate(x[row][None], inner, mode="bilinear", align_corners=False)[0]
        expected = torch.zeros_like(x[row])
        expected[:, corner[0] : corner[0] + inner[0], corner[1] : corner[1] + inner[1]] = small
        assert torch.allclose(mapped[row], expected, atol=1e-12)
        sizes.add(tuple(inner))
        places.add((shape[0] - inner[0] - corner[0] == 0, corner[0] == 0))
    assert 0.4 < float(resize.moved.double().mean()) < 0.8 and len(sizes) > 3
    assert {(True, False), (False, True)} <= places, "both borders are reached"
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = (mapped * gradient).flatten(1).sum(1)
    assert torch.allclose(left, (x * resize.transposed(gradient)).flatten(1).sum(1), rtol=1e-10)


def test_smoothing_is_the_convolution_with_the_public_kernel() -> None:
    from scipy.signal import convolve2d

    gradient = np.random.default_rng(0).normal(size=(2, 3, 9, 12))
    for size in (3, 5, 15):
        positions = np.linspace(-3, 3, size)
        kernel = np.exp(-(positions**2) / 2)[:, None] * np.exp(-(positions**2) / 2)[None]
        kernel /= kernel.sum()
        found = smoothed(torch.from_numpy(gradient), size).numpy()
        for image, expected in zip(found.reshape(-1, 9, 12), gradient.reshape(-1, 9, 12), strict=True):
            assert np.allclose(image, convolve2d(expected, kernel, mode="same"), atol=1e-12)
    assert gaussian_weights(1) == [1.0] and smoothed(torch.ones(1, 1, 2, 2), 1).sum() == 4


# ------------------------------------------------------------------------------------------- one formula after another


def by_hand(attack: Transfer, model: torch.nn.Module, image: np.ndarray, label: int, eps: float, norm: str) -> Any:
    """The docstring of ``Transfer`` for one image, in float64 numpy, with the dice that its row would throw."""
    from scipy.signal import convolve2d

    dice, slope = RowRandom.keyed(7, ["sample-0"]), Slope(model, label)
    x0 = image.astype(np.float64)
    x, momentum, variance = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
    positions = np.linspace(-3, 3, attack.kernel) if attack.kernel > 1 else np.zeros(1)
    kernel = np.exp(-(positions**2) / 2)[:, None] * np.exp(-(positions**2) / 2)[None]
    kernel /= kernel.sum()

    def length_one(values: np.ndarray) -> np.ndarray:
        return values / max(np.sqrt((values**2).sum()), 1e-30)

    def gradient(at: np.ndarray) -> np.ndarray:
        total = np.zeros_like(x0)
        for i in range(attack.scales):
            copy = at / 2**i
            if attack.diversity > 0:
                like = torch.from_numpy(copy[None].astype(np.float32))
                resize = Resize.drawn(like, attack.diversity, attack.smallest, dice)
                seen = slope(resize(like)[0].numpy())
                total += resize.transposed(torch.from_numpy(seen[None].astype(np.float32)))[0].numpy() / 2**i
            else:
                total += slope(copy) / 2**i
        return total / attack.scales

    for _ in range(attack.steps):
        ahead = momentum if norm == "linf" else length_one(momentum)
        at = x + attack.step_size * eps * attack.momentum * ahead if attack.nesterov else x
        here = gradient(np.clip(at, 0, 1))
        wanted = np.stack([convolve2d(channel, kernel, mode="same") for channel in here + variance])
        momentum = attack.momentum * momentum + wanted / np.abs(wanted).mean()
        if attack.points > 1:
            found = np.zeros_like(x0)
            for _ in range(attack.points - 1):
                if norm == "linf":
                    offset = attack.reach * eps * (2 * dice.uniform(*x0.shape)[0].double().numpy() - 1)
                else:
                    offset = length_one(dice.normal(*x0.shape)[0].double().numpy())
                    offset *= attack.reach * eps * float(dice.uniform()[0])
                found += gradient(np.clip(x + offset, 0, 1))
            variance = found / (attack.points - 1) - here
        if norm == "linf":
            x = np.clip(x + attack.step_size * eps * np.sign(momentum), x0 - eps, x0 + eps)
        else:
            delta = x + attack.step_size * eps * length_one(momentum) - x0
            x = x0 + delta * min(1.0, eps / np.sqrt((delta**2).sum()))
        x = np.clip(x, 0, 1)
    return x


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5)])
@pytest.mark.parametrize("name", FAMILY)
def test_every_setting_is_its_formula(name: str, norm: str, eps: float) -> None:
    attack: Any = FAMILY[name]
    for count in (1, 2):
        model = curved(count)
        images, labels = curved_samples(model, 1)
        expected = by_hand(attack, model, images[0], int(labels[0]), eps, norm)
        found = run_attack(model, attack, images, labels, ids(1), eps=eps, norm=norm, seed=7, mode="full").last[0]
        different = np.abs(found - expected) > 1e-5
        assert different.mean() <= 0.01, "more than a rare sign of a gradient near zero"
        assert np.abs(expected - images[0]).max() > 0.2 * eps / (1 if norm == "linf" else np.sqrt(192))


def test_every_setting_changes_the_result() -> None:
    model = curved(1)
    images, labels = curved_samples(model, 4)
    found = [
        run_attack(model, attack, images, labels, ids(4), eps=0.05, norm="linf", mode="full").last
        for attack in FAMILY.values()
    ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert not np.array_equal(one, other)


def svre_by_hand(attack: SVRE, members: list[Any], whole: Slope, image: np.ndarray, label: int, eps: float) -> Any:
    """Algorithm 1 as the released code runs it, every gradient asked anew."""
    slopes, dice = [Slope(member, label) for member in members], RowRandom.keyed(7, ["sample-0"])
    x0 = image.astype(np.float64)
    x, outer = x0.copy(), np.zeros_like(x0)
    for _ in range(attack.steps):
        drawn = dice.integers(len(members), attack.inner_steps)[0].tolist()
        everything, inner, momentum = whole(x), x.copy(), np.zeros_like(x)
        for k in drawn:
            reduced = slopes[k](inner) - (slopes[k](x) - everything)
            momentum = attack.inner_momentum * momentum + reduced / np.abs(reduced).mean()
            inner = np.clip(inner + attack.inner_step_size * eps * np.sign(momentum), x0 - eps, x0 + eps)
        outer = attack.momentum * outer + momentum / np.abs(momentum).mean()
        x = np.clip(x + attack.step_size * eps * np.sign(outer), x0 - eps, x0 + eps)
    return x


@pytest.mark.parametrize("count", [1, 2, 3])
def test_svre_is_algorithm_1_of_its_paper(count: int) -> None:
    attack, model = SVRE(steps=4, inner_steps=6, momentum=0.8, inner_momentum=0.9), curved(count)
    members = list(getattr(model, "members", [model]))
    images, labels = curved_samples(model, 1)
    expected = svre_by_hand(attack, members, Slope(model, int(labels[0])), images[0], int(labels[0]), 0.05)
    found = run_attack(model, attack, images, labels, ids(1), eps=0.05, norm="linf", seed=7, mode="full").last[0]
    assert (np.abs(found - expected) > 1e-5).mean() <= 0.01
    other = run_attack(model, attack, images, labels, ids(1), eps=0.05, norm="linf", seed=8, mode="full").last[0]
    assert np.array_equal(found, other) == (count == 1), "the seed draws the members"


def cwa_by_hand(attack: CWA, members: list[Any], images: np.ndarray, labels: np.ndarray, eps: float) -> np.ndarray:
    """The three parts of the docstring on a whole batch; the released code where the attack says so."""
    count, x0 = len(members), images.astype(np.float64)
    x, outer, inner = x0.copy(), np.zeros_like(x0), np.zeros_like(x0)
    factor = 1.0 if attack.as_released else 1.0 / count

    def together(z: torch.nn.Module) -> Any:
        return lambda at: factor * sum(member(at) for member in members)

    if attack.as_released:
        reverse, length, inner_length = 16 / 255 / 15, 16 / 255 / 5, 250.0
    else:
        reverse, length = eps * attack.reverse_step, eps * attack.step_size
        inner_length = attack.inner_step * eps * np.sqrt(x0[0].size)
    for _ in range(attack.steps):
        at = np.empty_like(x)
        for i, label in enumerate(labels):
            at[i] = x[i] - reverse * np.sign(Slope(together(members[0]), int(label))(x[i]))
            if not attack.as_released:
                at[i] = np.clip(at[i], x0[i] - eps, x0[i] + eps)
            for member in members:
                gradient = Slope(member, int(label))(at[i])
                inner[i] = attack.momentum * inner[i] + gradient / np.sqrt((gradient**2).sum())
                at[i] = np.clip(np.clip(at[i] + inner_length * inner[i], x0[i] - eps, x0[i] + eps), 0, 1)
        moved = at - x
        size = np.abs(moved).sum() if attack.as_released else np.abs(moved).sum(axis=(1, 2, 3), keepdims=True)
        outer = attack.momentum * outer + moved / size
        x = np.clip(np.clip(x + length * np.sign(outer), x0 - eps, x0 + eps), 0, 1)
    return x


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("as_released", [False, True])
def test_cwa_is_its_paper_and_as_released_its_code(as_released: bool, count: int) -> None:
    # a short inner step, so that u is not simply a corner of the ball; the released one is 250 whatever happens
    attack, model = CWA(steps=4, inner_step=0.3, momentum=0.9, as_released=as_released), curved(count)
    images, labels = curved_samples(model, 3)
    expected = cwa_by_hand(attack, list(getattr(model, "members", [model])), images, labels, 0.05)
    found = run_attack(model, attack, images, labels, ids(3), eps=0.05, norm="linf", mode="full").last
    assert (np.abs(found - expected) > 1e-5).mean() <= 0.01
    assert np.abs(expected - images).max() > 0.02


def test_cwa_released_inner_step_is_the_default_at_its_own_size() -> None:
    x = torch.zeros(1, 3, 224, 224)
    eps = torch.tensor([16 / 255], dtype=torch.float64)
    for here, released in zip(CWA()._lengths(eps, x), CWA(as_released=True)._lengths(eps, x), strict=True):
        assert float(here) == pytest.approx(float(released), rel=1e-3)


def adaea_parts(attack: AdaEA, members: list[Any], x: np.ndarray, x0: np.ndarray, y: int, eps: float) -> Any:
    """(weights, agreement [H, W]) of one image, from the two definitions."""
    count = len(members)
    gradients = [Slope(member, y)(x) for member in members]
    examples = [np.clip(x + attack.step_size * eps * np.sign(g), x0 - eps, x0 + eps) for g in gradients]
    with torch.no_grad():
        losses = np.array(
            [[float(ce(f(torch.from_numpy(a[None].astype(np.float32))), torch.tensor([y]))) for f in members]
             for a in examples]
        )  # fmt: skip
    strength = [sum(attack.beta * losses[j, i] / losses[i, i] for i in range(count) if i != j) for j in range(count)]
    weights = np.exp(strength - np.max(strength))
    cosines = [
        (gradients[i] * gradients[j]).sum(0) / np.sqrt((gradients[i] ** 2).sum(0) * (gradients[j] ** 2).sum(0))
        for i in range(count)
        for j in range(i)
    ]
    return weights / weights.sum(), np.mean(cosines, axis=0)


@pytest.mark.parametrize("count", [2, 3])
def test_adaea_is_its_two_definitions(count: int) -> None:
    attack, model, eps = AdaEA(steps=3, start_noise=0.0, threshold=0.1, beta=3.0), curved(count), 0.05
    members, (images, labels) = list(model.members), curved_samples(model, 1)
    x0 = images[0].astype(np.float64)
    x, momentum, y = x0.copy(), np.zeros_like(x0), int(labels[0])
    for _ in range(3):
        weights, agreement = adaea_parts(attack, members, x, x0, y, eps)
        assert 0.1 < (agreement >= 0.1).mean() < 0.9, "the filter filters"

        def mixed(at: torch.Tensor, weights: np.ndarray = weights) -> torch.Tensor:
            return sum(float(w) * member(at) for w, member in zip(weights, members, strict=True))

        gradient = Slope(mixed, y)(x) * (agreement >= 0.1)  # type: ignore[arg-type]
        momentum = 0.9 * momentum + gradient / np.abs(gradient).mean()
        x = np.clip(x + 0.25 * eps * np.sign(momentum), x0 - eps, x0 + eps)
    assert weights.max() - weights.min() > 0.02, "the weights weigh"
    found = run_attack(model, attack, images, labels, ids(1), eps=eps, norm="linf", mode="full").last[0]
    assert (np.abs(found - x) > 1e-5).mean() <= 0.01


def test_adaea_as_released_forgets_the_last_row_and_mixes_the_batch() -> None:
    draw = torch.Generator().manual_seed(0)
    gradients = [torch.randn(2, 3, 4, 4, generator=draw) for _ in range(3)]
    cosine = torch.nn.functional.cosine_similarity
    pairs = {(i, j): cosine(gradients[i], gradients[j], dim=1) for i in range(3) for j in range(3)}
    # the released loop: a mean over the others for every member but the last, whose zero is averaged in
    released = sum(sum(pairs[i, j] for j in range(3) if j != i) / 2 for i in (0, 1)) / 3
    honest = (pairs[0, 1] + pairs[0, 2] + pairs[1, 2]) / 3
    assert torch.allclose(AdaEA(as_released=True).agreement(gradients)[:, 0], released, atol=1e-6)
    assert torch.allclose(AdaEA().agreement(gradients)[:, 0], honest, atol=1e-6)
    same = [torch.ones(1, 3, 2, 2)] * 3
    assert torch.allclose(AdaEA().agreement(same), torch.ones(1, 1, 2, 2))
    assert torch.allclose(AdaEA(as_released=True).agreement(same), torch.full((1, 1, 2, 2), 2 / 3))


# ---------------------------------------------------------------------------------------------------- closed forms

MEMBERS = (0, 3, 5)


@pytest.mark.parametrize("name", ["mi", "ni", "si", "vmi", "by-loss", "svre", "cwa", "adaea"])
def test_worst_case_of_a_linear_model(name: str) -> None:
    attack = {
        "mi": Transfer(),
        "ni": Transfer(nesterov=True),
        "si": Transfer(scales=3, step_size=0.2),
        "vmi": Transfer(points=4),
        "by-loss": EnsemblePGD(),
        "svre": SVRE(inner_steps=4),
        "cwa": CWA(),
        "adaea": AdaEA(),
    }[name]
    model, images, labels = linear_samples(12)
    critical = 4.0 / float(model.w.abs().sum())
    hit = run_attack(model, attack, images, labels, ids(12), eps=1.02 * critical, norm="linf", mode="search")
    miss = run_attack(model, attack, images, labels, ids(12), eps=0.98 * critical, norm="linf", mode="full")
    assert hit.clean_correct.all() and hit.success.all() and not miss.success.any()
    assert np.allclose(miss.best_margin, -0.02 * 4.0, atol=0.004 * 4.0)


@pytest.mark.parametrize("attack", [Transfer(), Transfer(points=3), SVRE(inner_steps=4)], ids=["mi", "vmi", "svre"])
def test_worst_case_of_the_mean_of_linear_models(attack: Attack) -> None:
    model = ensemble_of([Linear64(seed=seed) for seed in MEMBERS], image_shape=(3, 8, 8))
    w = np.mean([member.w.numpy() for member in model.members], axis=0)
    bias = np.mean([member.bias for member in model.members])
    x = np.random.default_rng(1).uniform(0.4, 0.6, (12, 192))
    x += ((2.0 - (x @ w + bias)) / (w @ w))[:, None] * w
    images, labels = x.reshape(12, 3, 8, 8).astype(np.float32), np.zeros(12, dtype=np.int64)
    critical = 2.0 / np.abs(w).sum()
    hit = run_attack(model, attack, images, labels, ids(12), eps=1.02 * critical, norm="linf")
    miss = run_attack(model, attack, images, labels, ids(12), eps=0.98 * critical, norm="linf")
    assert hit.clean_correct.all() and hit.success.all() and not miss.success.any()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.4)])
def test_an_ensemble_of_one_is_the_plain_attack_bit_for_bit(norm: str, eps: float) -> None:
    model, images, labels = digits_net()
    images, labels = images[:20], labels[:20]

    def run(attack: Attack, who: torch.nn.Module = model) -> Any:
        return run_attack(who, attack, images, labels, ids(20), eps=eps, norm=norm, mode="full", batch_size=20)

    alone = ensemble_of([model], image_shape=(3, 16, 16))
    mi = run(Transfer(momentum=0.9))
    pairs = [
        (EnsemblePGD(steps=6), PGD(steps=6)),
        (Transfer(steps=6, step_size=0.25, momentum=0.0, random_start=True), PGD(steps=6)),
        (EnsemblePGD(steps=10, step_size=0.1, momentum=0.9, random_start=False), Transfer(momentum=0.9)),
    ]
    if norm == "linf":
        pairs.append((AdaEA(steps=10, step_size=0.1, start_noise=0.0), Transfer(momentum=0.9)))
    for ours, plain in pairs:
        expected = run(plain)
        for found in (run(ours), run(ours, alone)):
            assert np.array_equal(found.last, expected.last) and np.array_equal(found.best, expected.best)
            assert np.array_equal(found.n_backward, expected.n_backward)
    assert 0 < mi.success.sum() < 20


def test_a_model_twice_is_the_model_once() -> None:
    model = Curved64()
    twice = ensemble_of([model, model], image_shape=(3, 8, 8))
    images, labels = curved_samples(model, 6)
    options: dict[str, Any] = {"eps": 0.02, "norm": "linf", "mode": "full"}
    for attack in (EnsemblePGD(steps=4), SVRE(steps=3, inner_steps=4), Transfer(steps=4, points=3, diversity=0.5)):
        once = run_attack(model, attack, images, labels, ids(6), **options).last
        found = run_attack(twice, attack, images, labels, ids(6), **options).last
        assert (np.abs(once - found) > 1e-5).mean() <= 0.01
    # equal weights and full agreement: AdaEA on copies is AdaEA on the one
    once = run_attack(model, AdaEA(steps=4), images, labels, ids(6), **options).last
    assert (
        np.abs(run_attack(twice, AdaEA(steps=4), images, labels, ids(6), **options).last - once) > 1e-5
    ).mean() < 0.01


# --------------------------------------------------------------------------------------- rows, balls, costs, zeros


@pytest.mark.parametrize(
    ("name", "count"), [(name, k) for name in FAMILY for k in (1, 2)] + [(name, k) for name in ENSEMBLE for k in (2, 3)]
)
def test_a_batch_of_eight_is_eight_batches_of_one(name: str, count: int) -> None:
    attack, model = (FAMILY | ENSEMBLE)[name], curved(count)
    images, labels = curved_samples(model, 8)
    for norm, eps in (("linf", 0.004), ("l2", 0.05)):
        if norm not in attack.norms:
            continue
        options: dict[str, Any] = {"eps": eps, "norm": norm, "seed": 3}
        together = run_attack(model, attack, images, labels, ids(8), batch_size=8, mode="full", **options)
        alone = run_attack(model, attack, images, labels, ids(8), batch_size=1, mode="full", **options)
        assert np.array_equal(together.last, alone.last) and np.array_equal(together.best, alone.best)
        assert np.array_equal(together.n_forward, alone.n_forward)
        # refilled batches mix ages
        left = run_attack(model, attack, images, labels, ids(8), batch_size=8, mode="search", **options)
        mixed = run_attack(model, attack, images, labels, ids(8), batch_size=3, mode="search", **options)
        assert np.array_equal(left.last, mixed.last) and np.array_equal(left.n_forward, mixed.n_forward)
        assert np.array_equal(left.success, together.success)

        assert not together.bound_violation.any() and not left.bound_violation.any()
        delta = (together.last.astype(np.float64) - images).reshape(8, -1)
        far = np.abs(delta).max(1) if norm == "linf" else np.sqrt((delta**2).sum(1))
        assert (far <= eps).all() and far.min() > 0.2 * eps


@pytest.mark.parametrize("as_released", [False, True])
def test_only_as_released_knows_its_batch(as_released: bool) -> None:
    """That is why it is a switch: the images differ, so that a norm or a mean over the batch shows."""
    model = curved(3)
    images, labels = curved_samples(model, 8)
    options: dict[str, Any] = {"eps": 0.05, "norm": "linf", "mode": "full", "seed": 3}
    adaptive = AdaEA(steps=3, as_released=as_released, beta=3.0)
    together = run_attack(model, adaptive, images, labels, ids(8), batch_size=8, **options)
    alone = run_attack(model, adaptive, images, labels, ids(8), batch_size=1, **options)
    assert np.array_equal(together.last, alone.last) == (not as_released)

    # only the sign of CWA's momentum is seen from outside: look at the momentum itself
    x, y, eps = torch.from_numpy(images), torch.from_numpy(labels), torch.full((8,), 0.05, dtype=torch.float64)
    common = CWA(as_released=as_released)

    def momentum(rows: slice) -> torch.Tensor:
        query, dice = Asking(model, y[rows]), RowRandom.keyed(0, ids(8)[rows])
        start = common.init(x[rows], y[rows], eps[rows], "linf", dice, query)  # type: ignore[arg-type]
        start |= {"x0": x[rows], "y": y[rows], "eps": eps[rows]}
        return common.step(start, "linf", dice, query)["momentum"]  # type: ignore[arg-type]

    ratio = momentum(slice(0, 8))[0].abs().sum() / momentum(slice(0, 1)).abs().sum()
    assert abs(float(ratio) - (1 / 8 if as_released else 1.0)) < 0.03


def test_costs_are_those_that_are_stated() -> None:
    steps = 4
    for count in (1, 2, 3):
        model = curved(count)
        images, labels = curved_samples(model, 5)
        extra = 0 if count == 1 else count
        ends = 2 * count  # the clean image and the last one, in passes through one model
        for attack, forward, backward in (
            (Transfer(steps=steps), count, count),
            (Transfer(steps=steps, kernel=3), count, count),
            (Transfer(steps=steps, nesterov=True), 2 * count + extra, count),
            (Transfer(steps=steps, scales=3), 3 * count + 2 * extra, 3 * count),
            (Transfer(steps=steps, points=4), 4 * count + 3 * extra, 4 * count),
            (EnsemblePGD(steps=steps), count + extra, count),
            (SVRE(steps=steps, inner_steps=5), (6 if count > 1 else 5) * count, (6 if count > 1 else 5) * count),
            (CWA(steps=steps), 2 * count, 2 * count),
            (AdaEA(steps=steps), 1 if count == 1 else 3 * count + count**2, 1 if count == 1 else 2 * count),
        ):
            found = run_attack(model, attack, images, labels, ids(5), eps=0.01, norm="linf", mode="full")
            assert (found.n_forward == steps * forward + ends).all(), (attack, count)
            assert (found.n_backward == steps * backward).all(), (attack, count)


def test_points_outside_the_ball_are_never_kept() -> None:
    """The look-ahead, the scaled copy and the neighbours fool the model; only what is inside the ball may count."""
    model, images, labels = linear_samples(10)
    critical = 4.0 / float(model.w.abs().sum())
    for attack in (
        Transfer(nesterov=True),
        Transfer(scales=5),
        Transfer(points=8, reach=20.0),
        Transfer(diversity=1.0),
    ):
        result = run_attack(model, attack, images, labels, ids(10), eps=0.5 * critical, norm="linf", mode="full")
        assert not result.success.any() and not result.bound_violation.any()


@pytest.mark.parametrize("name", [*FAMILY, *ENSEMBLE])
def test_saturated_logits_are_reported_and_do_not_poison_the_image(name: str) -> None:
    net, images, labels = digits_net()
    images, labels = images[:12], labels[:12]
    for model in (Scaled(net, 1000), ensemble_of([Scaled(net, 1000), Scaled(net, 2000)], image_shape=(3, 16, 16))):
        result = run_attack(
            model, (FAMILY | ENSEMBLE)[name], images, labels, ids(12), eps=0.05, norm="linf", mode="full"
        )
        assert np.isfinite(result.last).all() and not result.bound_violation.any() and not result.nan_gradient.any()
        assert result.zero_gradient[result.clean_correct & ~result.success].all()


def test_a_margin_is_not_stopped_by_saturation() -> None:
    net, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.05, "norm": "linf", "mode": "full"}
    for ours in (Transfer, EnsemblePGD, SVRE):
        settings: dict[str, Any] = {"inner_steps": 3} if ours is SVRE else {}
        plain = run_attack(net, ours(loss="margin", **settings), images[:40], labels[:40], ids(40), **options)
        scaled = run_attack(
            Scaled(net, 1000), ours(loss="margin", **settings), images[:40], labels[:40], ids(40), **options
        )
        stuck = run_attack(Scaled(net, 1000), ours(loss="ce", **settings), images[:40], labels[:40], ids(40), **options)
        assert abs(int(plain.success.sum()) - int(scaled.success.sum())) <= 1
        assert stuck.success.sum() < plain.success.sum()


# --------------------------------------------------------------------------------------------- independent libraries


@cache
def grey_digits() -> tuple[torch.nn.Module, np.ndarray, np.ndarray]:
    """digits_net on images in [.25, .75], where no look-ahead or neighbour meets the box (we clip, they do not)."""
    net, images, labels = digits_net()

    class Stretched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net((x.double() - 0.25) * 2)

    import copy

    net = copy.deepcopy(net)
    model = Stretched().eval()
    grey = (0.25 + 0.5 * images).astype(np.float32)
    right = predict(model, grey)[0].argmax(1) == labels
    return model, grey[right][:8], labels[right][:8]


@pytest.mark.parametrize("name", ["MIFGSM", "NIFGSM", "DIFGSM", "TIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM"])
def test_agrees_with_torchattacks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time, since theirs throw one die per batch; random neighbours with our dice. Their momentum
    classes divide 0 by 0 where a gradient vanishes, which it does nowhere here."""
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = grey_digits()
    eps, steps = 0.03, 5
    settings, theirs_settings = {
        "MIFGSM": ({}, {"decay": 1.0}),
        "NIFGSM": ({"nesterov": True}, {"decay": 1.0}),
        "DIFGSM": ({"momentum": 0.8}, {"decay": 0.8, "diversity_prob": 0.0}),
        "TIFGSM": ({"kernel": 5}, {"decay": 1.0, "diversity_prob": 0.0, "len_kernel": 5}),
        "SINIFGSM": ({"nesterov": True, "scales": 3}, {"decay": 1.0, "m": 3}),
        "VMIFGSM": ({"points": 4}, {"decay": 1.0, "N": 3}),
        "VNIFGSM": ({"points": 4, "nesterov": True}, {"decay": 1.0, "N": 3}),
    }[name]
    ours = run_attack(
        model, Transfer(steps=steps, step_size=0.2, **settings), images, labels, ids(8), eps=eps, norm="linf",
        seed=5, mode="full",
    ).last  # fmt: skip
    plain = run_attack(model, Transfer(steps=steps, step_size=0.2), images, labels, ids(8), eps=eps, norm="linf").last
    if name not in ("MIFGSM", "DIFGSM"):
        assert (np.abs(ours - plain) > 1e-5).mean() > 0.02, "the setting changes something"

    oracle = getattr(torchattacks, name)(model, eps=eps, alpha=eps / steps, steps=steps, **theirs_settings)
    for row in range(8):
        dice = RowRandom.keyed(5, [ids(8)[row]])

        class Drawn:
            def __init__(self, like: torch.Tensor, dice: RowRandom = dice) -> None:
                self.values = lambda: dice.uniform(*like.shape[1:])

            def uniform_(self, low: float, high: float) -> torch.Tensor:
                return low + (high - low) * self.values()

        with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
            patch.setattr(torch, "randn_like", Drawn)
            theirs = oracle(torch.from_numpy(images[row : row + 1]), torch.from_numpy(labels[row : row + 1])).numpy()[0]
        assert (np.abs(ours[row] - theirs) > 1e-5).mean() <= 0.01


# ------------------------------------------------------------------------------------------------- shipped models

MODELS = Path(__file__).parents[1] / "resources" / "models"


@cache
def shipped(*names: str) -> torch.nn.Module:
    from windtunnel.models.load import load_model

    models = [load_model(MODELS / name) for name in names]
    return models[0] if len(models) == 1 else ensemble_of(models)


def test_momentum_transfers_on_the_shipped_models() -> None:
    """Two sources, another target, linf 8/255, 64 images that the target knows: fooled by the last image."""
    from windtunnel.images import photodigits

    target, source = shipped("digits-cnn"), shipped("digits-cnn-s1", "digits-vit")
    test = photodigits.build("test")
    images = (test.images[:72].astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2).copy()
    labels = np.asarray(test.labels[:72], dtype=np.int64)
    right = np.flatnonzero(predict(target, images)[0].argmax(1) == labels)[:64]
    assert len(right) == 64
    images, labels = images[right], labels[right]
    options: dict[str, Any] = {"eps": 8 / 255, "norm": "linf", "mode": "full", "batch_size": 64}
    fooled = {}
    for name, attack in {
        "noise": SignNoise(draws=1),
        "pgd": PGD(steps=10, step_size=0.1),
        "mi": Transfer(),
        "by-loss-mi": EnsemblePGD(steps=10, step_size=0.1, momentum=1.0, random_start=False),
    }.items():
        last = run_attack(source, attack, images, labels, ids(64), **options).last
        fooled[name] = int((predict(target, last)[0].argmax(1) != labels).sum())
    # the difference of two paired counts out of 64 has a standard deviation of about 3
    assert fooled["mi"] >= fooled["pgd"] - 4, fooled
    assert all(fooled["noise"] + 5 <= count for name, count in fooled.items() if name != "noise"), fooled


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        lambda: Transfer(steps=0),
        lambda: Transfer(kernel=4),
        lambda: Transfer(kernel=0),
        lambda: Transfer(diversity=1.5),
        lambda: Transfer(smallest=1.0),
        lambda: Transfer(nesterov=True, momentum=0.0),
        lambda: Transfer(loss="cw"),
        lambda: Transfer(points=0),
        lambda: EnsemblePGD(step_size=0.0),
        lambda: SVRE(inner_steps=0),
        lambda: SVRE(inner_momentum=-1.0),
        lambda: CWA(inner_step=0.0),
        lambda: AdaEA(threshold=-2.0),
        lambda: AdaEA(beta=-1.0),
    ):
        with pytest.raises(ValueError):
            wrong()
