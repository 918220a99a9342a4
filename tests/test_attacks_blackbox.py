"""Square, SPSA, HopSkipJump and noise against closed forms, torchattacks and Foolbox."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attack_samples import Curved64, digits_net, linear_samples

from windtunnel.attacks.base import Attack
from windtunnel.attacks.hopskipjump import HopSkipJump
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.attacks.spsa import SPSA
from windtunnel.attacks.square import Square, bump
from windtunnel.backend import torch
from windtunnel.engine import AttackResult, RowRandom, predict, run_attack


def ids(n: int) -> list[str]:
    return [f"sample-{i}" for i in range(n)]


def lengths(x: np.ndarray, x0: np.ndarray, norm: str) -> np.ndarray:
    delta = (x.astype(np.float64) - x0).reshape(len(x), -1)
    return np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)


def critical(model: Any, norm: str, margin: float = 4.0) -> float:
    """The distance of every sample of ``linear_samples`` from the boundary."""
    w = model.w.numpy()
    return margin / float(np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))


class Asked:
    """A query that answers with fixed margins and keeps what it was asked."""

    n_classes, n_members = 2, 1

    def __init__(self, margin: float) -> None:
        self.margin, self.images = margin, []

    def logits(self, x: torch.Tensor, *, member: int | None = None) -> torch.Tensor:
        self.images.append(x.clone())
        return torch.tensor([[0.0, self.margin]]).expand(len(x), 2)


# -------------------------------------------------------------------------------------------------------- all of them

QUICK = {
    "square": Square(queries=40),
    "spsa": SPSA(steps=4, samples=8),
    "hopskipjump": HopSkipJump(queries=150, probes=20),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", sorted(QUICK))
def test_rows_of_different_age_share_a_batch_without_knowing_it(name: str, norm: str) -> None:
    """Bit for bit where rows cannot disturb each other's rounding."""
    model = Curved64()
    images = np.random.default_rng(0).uniform(0.3, 0.7, (30, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    options: dict[str, Any] = {"eps": {"linf": 0.03, "l2": 0.3}[norm], "norm": norm, "mode": "search"}
    one = run_attack(model, QUICK[name], images, labels, ids(30), batch_size=64, **options)
    two = run_attack(model, QUICK[name], images, labels, ids(30), batch_size=4, **options)
    assert np.array_equal(one.best, two.best) and np.array_equal(one.n_forward, two.n_forward)
    assert np.array_equal(one.first_success, two.first_success)
    assert 0 < one.success.sum() < 30 and len(set(one.n_forward.tolist())) >= 3, "too few ages to mix"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [*QUICK.values(), SignNoise(draws=20)], ids=[*QUICK, "noise"])
def test_no_attack_beats_the_worst_case_of_a_linear_model(attack: Attack, norm: str) -> None:
    model, images, labels = linear_samples(20)
    eps = 0.98 * critical(model, norm)
    found = run_attack(model, attack, images, labels, ids(20), eps=eps, norm=norm, mode="full")
    assert not found.success.any() and not found.bound_violation.any()
    assert (lengths(found.last, images, norm) <= eps * (1 + 1e-6)).all()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 1.5)])
def test_noise_breaks_next_to_nothing_that_the_attacks_miss(norm: str, eps: float) -> None:
    model, images, labels = digits_net()
    images, labels = images[:50], labels[:50]
    options: dict[str, Any] = {"eps": eps, "norm": norm, "mode": "search"}
    noise = run_attack(model, SignNoise(draws=100), images, labels, ids(50), **options).success
    for attack in (Square(queries=100), SPSA(steps=8, samples=20), HopSkipJump(queries=400, probes=40)):
        found = run_attack(model, attack, images, labels, ids(50), **options).success
        assert (noise & ~found).sum() <= 2, type(attack).__name__
        assert found.sum() > noise.sum() or isinstance(attack, HopSkipJump), type(attack).__name__


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: SPSA(samples=3),
        lambda: SPSA(steps=0),
        lambda: SPSA(delta=0.0),
        lambda: SPSA(loss="cw"),
        lambda: HopSkipJump(queries=0),
        lambda: HopSkipJump(probes=20_000),
        lambda: HopSkipJump(gamma=0.0),
    ],
)
def test_what_cannot_be_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be|unknown loss"):
        wrong()


# -------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_normal_along_the_weights_of_a_linear_model(norm: str) -> None:
    """linf corners and l2 directions of length eps: w.delta has the standard deviation eps |w| (over sqrt d for l2)."""
    model, images, labels = linear_samples(400, margin=1.0)
    w = model.w.numpy()
    eps = 1.0 / np.linalg.norm(w) * (1.0 if norm == "linf" else np.sqrt(w.size))
    found = run_attack(model, SignNoise(draws=1), images, labels, ids(400), eps=eps, norm=norm, mode="full")
    away = found.last.astype(np.float64) - images
    assert np.allclose(lengths(found.last, images, norm), eps, rtol=1e-5)
    if norm == "linf":
        assert np.allclose(np.abs(away), eps, atol=1e-6)
    along = away.reshape(400, -1) @ w
    assert abs(along.mean()) < 4 / np.sqrt(400) and abs(along.std() - 1) < 4 / np.sqrt(800)
    # One draw crosses a boundary one standard deviation away with probability .1587.
    assert abs(found.success.mean() - 0.1587) < 4 * np.sqrt(0.1587 * 0.8413 / 400)


# ------------------------------------------------------------------------------------------------------------- square


@pytest.mark.parametrize("side", [3, 5, 6, 7, 29])
def test_the_bump_is_that_of_the_paper(side: int) -> None:
    """Equation 2: nested rectangles around the centre, the k-th of height 1 / k^2, two halves of opposite sign."""
    halves = []
    for height in (side // 2, side - side // 2):
        half = np.zeros((height, side))
        for k in range(max(height, side) // 2 + 1):
            rows = slice(max(height // 2 - k, 0), height // 2 + k + 1)
            half[rows, max(side // 2 - k, 0) : side // 2 + k + 1] += 1 / (k + 1) ** 2
        halves.append(half / np.linalg.norm(half))
    wanted = np.concatenate([halves[0], -halves[1]]) / np.sqrt(2)
    np.testing.assert_allclose(bump(side).numpy(), wanted, atol=1e-12)


def test_square_l2_starts_with_a_grid_of_bumps_and_moves_mass_between_two_squares() -> None:
    x0 = torch.full((6, 3, 32, 32), 0.5)
    eps, y = torch.full((6,), 0.4, dtype=torch.float64), torch.zeros(6, dtype=torch.long)
    attack, dice = Square(queries=1000, rescale=False), RowRandom.keyed(0, ids(6))
    rows = attack.init(x0, y, eps, "l2", dice, Asked(-1.0))
    delta = (rows["x"] - x0).double()
    assert torch.allclose(delta.flatten(1).norm(dim=1), eps, rtol=1e-5)
    assert (delta[:, :, [0, 31]] == 0).all() and (delta[..., [0, 31]] == 0).all()
    tiles = delta[:, :, 1:31, 1:31].unfold(2, 6, 6).unfold(3, 6, 6)  # [6, 3, 5, 5, 6, 6]
    assert torch.allclose(tiles.square().sum((4, 5)), torch.tensor(0.4**2 / 75, dtype=torch.float64), rtol=1e-4)
    turned = (tiles.transpose(4, 5) - tiles).abs().amax((1, 4, 5)) > 1e-3
    assert turned.all(), "a bump is not symmetric"
    assert len({tuple(t.sign().flatten().tolist()) for t in tiles[..., 0, 3]}) == 6, "every row has signs of its own"

    # At query 600 of an unscaled schedule p = .8 / 16: squares of 7 x 7. Nothing is clipped here: the norm stays.
    rows |= {"x0": x0, "y": y, "eps": eps, "t": torch.full((6,), 600), "margin": torch.zeros(6)}
    query = Asked(-1.0)
    assert torch.equal(attack.step(rows, "l2", dice, query)["x"], rows["x"]), "a worse image is not taken"
    (asked,) = query.images
    moved = (asked - rows["x"]).abs().amax(1) > 1e-7
    assert torch.allclose((asked - x0).double().flatten(1).norm(dim=1), eps, rtol=1e-5)
    assert (moved.flatten(1).sum(1) <= 2 * 49).all() and (moved.flatten(1).sum(1) > 40).all()
    for row in moved:
        assert row.any(0).sum() <= 14 and row.any(1).sum() <= 14
    assert torch.equal(attack.step(rows, "l2", dice, Asked(1.0))["margin"], torch.ones(6)), "a better one is"


def test_square_l2_uses_what_clipping_left_unused() -> None:
    x0 = torch.zeros(4, 3, 16, 16)  # everything negative is cut off: half of eps^2 is unused at the start
    eps, y = torch.full((4,), 0.3, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    attack, dice = Square(queries=100), RowRandom.keyed(0, ids(4))
    rows = attack.init(x0, y, eps, "l2", dice, Asked(-1.0))
    rows |= {"x0": x0, "y": y, "eps": eps, "t": torch.full((4,), 3)}
    before = rows["x"].flatten(1).norm(dim=1)
    query = Asked(1.0)
    after = attack.step(rows, "l2", dice, query)["x"]
    assert (before < 0.24).all() and (after >= 0).all()
    assert (after.double().flatten(1).norm(dim=1) <= eps).all()
    assert not torch.equal(after, rows["x"])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 12), (3, 4, 4)])
def test_square_l2_fits_any_picture(shape: tuple[int, ...]) -> None:
    x0 = torch.full((3, *shape), 0.5)
    eps, y = torch.full((3,), 0.2, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    attack, dice = Square(queries=50), RowRandom.keyed(0, ids(3))
    rows = attack.init(x0, y, eps, "l2", dice, Asked(1.0)) | {"x0": x0, "y": y, "eps": eps}
    for age in (0, 1, 20, 49):
        rows = attack.step(rows | {"t": torch.full((3,), age), "margin": torch.zeros(3)}, "l2", dice, Asked(1.0))
        assert torch.allclose((rows["x"] - x0).double().flatten(1).norm(dim=1), eps, rtol=1e-4)


def test_square_l2_agrees_with_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        oracle = torchattacks.Square(model, norm="L2", eps=1.8, n_queries=200)
        fooled = model(oracle(x, y)).argmax(1).ne(y).numpy()
    ours = run_attack(model, Square(queries=200), images, labels, ids(100), eps=1.8, norm="l2").success
    assert 20 < fooled.sum() < 90 and abs(int(ours.sum()) - int(fooled.sum())) <= 8


def test_square_l2_finds_what_noise_does_not() -> None:
    model, images, labels = linear_samples(40)
    options: dict[str, Any] = {"eps": 3 * critical(model, "l2"), "norm": "l2", "mode": "search"}
    square = run_attack(model, Square(queries=300), images, labels, ids(40), **options)
    noise = run_attack(model, SignNoise(draws=300), images, labels, ids(40), **options)
    assert square.success.mean() > 0.8 and noise.success.mean() < 0.1


# --------------------------------------------------------------------------------------------------------------- spsa


class OneQuery:
    """A linear model as a query; counts."""

    n_classes, n_members = 4, 1

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.asked = model, 0

    def logits(self, x: torch.Tensor, *, member: int | None = None) -> torch.Tensor:
        assert member == 0 and x.min() >= 0 and x.max() <= 1, "probes are pictures, and no candidates"
        self.asked += 1
        return self.model(x)


def test_spsa_estimates_the_gradient_of_a_linear_model() -> None:
    """n directions in d pixels: the estimate is w plus noise of n-th the variance, cosine sqrt(n / (n + d - 1))."""
    model, images, labels = linear_samples(20)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    x[:, 0, 0] = 0.0  # at the edge of the box one side of the probe is cut off: the estimate must not shrink
    query = OneQuery(model)
    n, d = 512, 192
    estimate = SPSA(samples=2 * n).estimate(x, y, RowRandom.keyed(0, ids(20)), query).flatten(1).double()
    assert query.asked == 2 * n
    gradient = torch.where(y == 0, -1.0, 1.0)[:, None] * model.w  # of the margin, in x
    cosine = torch.nn.functional.cosine_similarity(estimate, gradient)
    assert torch.allclose(cosine, torch.tensor((n / (n + d - 1)) ** 0.5, dtype=torch.float64), atol=0.08)
    scale = (estimate * gradient).sum(1) / gradient.square().sum(1)
    assert abs(float(scale.mean()) - 1) < 0.05
    error = (estimate - gradient)[:, :8]  # the cut-off line, whose own difference is half as wide
    assert abs(float((error / gradient.norm(dim=1, keepdim=True)).mean())) < 0.01
    assert float(((estimate * gradient).sum(0) / gradient.square().sum(0))[:8].mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_spsa_comes_near_the_worst_case_of_a_linear_model(norm: str) -> None:
    model, images, labels = linear_samples(10)
    attack, eps = SPSA(steps=40, samples=64), 1.2 * critical(model, norm)
    found = run_attack(model, attack, images, labels, ids(10), eps=eps, norm=norm, mode="full")
    assert found.clean_correct.all() and found.success.all()
    # What it costs: the clean image, per step the iterate and the probes, the last iterate.
    assert (found.n_forward == 1 + 40 * 65 + 1).all() and (found.n_backward == 0).all()


def test_spsa_sees_through_a_staircase_on_which_gradients_are_zero() -> None:
    model, images, labels = linear_samples(10)

    class Stairs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (model(x) * 4).round()

    stairs = Stairs().eval()
    options: dict[str, Any] = {"eps": 1.6 * critical(model, "linf"), "norm": "linf", "mode": "full"}
    blind = run_attack(stairs, PGD(loss="margin", random_start=False), images, labels, ids(10), **options)
    assert blind.zero_gradient.all() and not blind.success.any()
    assert run_attack(stairs, SPSA(steps=20, samples=64), images, labels, ids(10), **options).success.all()


def test_spsa_agrees_with_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    oracle = torchattacks.SPSA(model, eps=0.12, delta=0.01, lr=0.32 * 0.12, nb_iter=15, nb_sample=32, max_batch_size=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = oracle(x, y)
    fooled = model(theirs).argmax(1).ne(y).numpy()
    attack = SPSA(steps=15, samples=64)
    ours = run_attack(model, attack, images, labels, ids(100), eps=0.12, norm="linf", mode="full")
    wrong = predict(model, ours.last)[0].argmax(1) != labels
    assert 20 < fooled.sum() < 90 and abs(int(wrong.sum()) - int(fooled.sum())) <= 6


# -------------------------------------------------------------------------------------------------------- hopskipjump


@pytest.fixture(scope="module", params=["linf", "l2"])
def nearest(request: pytest.FixtureRequest) -> tuple[str, Any, np.ndarray, np.ndarray, AttackResult]:
    model, images, labels = linear_samples(10)
    norm = request.param
    options: dict[str, Any] = {"eps": 3 * critical(model, norm), "norm": norm, "mode": "full", "batch_size": 10}
    found = run_attack(model, HopSkipJump(queries=1500), images, labels, ids(10), **options)
    return norm, model, images, labels, found


def test_hopskipjump_converges_to_the_distance_of_a_linear_boundary(nearest: Any) -> None:
    norm, model, images, labels, found = nearest
    ratio = lengths(found.best, images, norm) / critical(model, norm)
    assert found.clean_correct.all() and found.success.all()
    assert (ratio >= 1 - 1e-6).all(), "nothing misclassified is nearer than the boundary"
    assert (ratio < {"linf": 1.35, "l2": 1.17}[norm]).all()
    fewer = run_attack(
        model, HopSkipJump(queries=500), images, labels, ids(10), eps=3 * critical(model, norm), norm=norm, mode="full"
    )  # fmt: skip
    assert (lengths(fewer.best, images, norm) / critical(model, norm) > ratio + 0.05).all()
    # The bill is the budget (and the clean and the last image); the last image lies on the surface of the ball.
    assert (found.n_forward == 1502).all() and (found.n_backward == 0).all()
    assert np.allclose(lengths(found.last, images, norm), 3 * critical(model, norm), rtol=1e-4)
    assert (predict(model, found.last)[0].argmax(1) != labels).all()


def test_hopskipjump_sees_nothing_but_the_class(nearest: Any) -> None:
    norm, model, images, labels, found = nearest

    class Changed(torch.nn.Module):
        def __init__(self, change: Any) -> None:
            super().__init__()
            self.change = change

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.change(model(x))

    for change in (
        lambda z: z.sinh(),  # increasing, and exact near 0, where the boundary is
        lambda z: torch.nn.functional.one_hot(z.argmax(1), z.shape[1]).double(),
    ):
        other = run_attack(
            Changed(change).eval(), HopSkipJump(queries=1500), images, labels, ids(10),
            eps=3 * critical(model, norm), norm=norm, mode="full", batch_size=10,
        )  # fmt: skip
        assert np.array_equal(other.best, found.best) and np.array_equal(other.last, found.last)
        assert np.array_equal(other.first_success, found.first_success)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hopskipjump_leaves_when_it_is_near_enough_and_counts_nothing_outside(norm: str) -> None:
    model, images, labels = linear_samples(10)
    options: dict[str, Any] = {"norm": norm, "batch_size": 10}
    attack = HopSkipJump(queries=800)
    far = run_attack(model, attack, images, labels, ids(10), eps=0.99 * critical(model, norm), **options)
    near = run_attack(model, attack, images, labels, ids(10), eps=2 * critical(model, norm), **options)
    assert not far.success.any() and np.isfinite(far.best_margin).all()
    assert near.success.all() and (near.n_forward < 802).all()
    assert np.array_equal(predict(model, near.best)[0].argmax(1) != labels, near.success)


class Extreme(torch.nn.Module):
    """Class 1 where the mean is far from the middle: all uniform noise is class 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        away = (x.flatten(1).double().mean(1) - 0.5).abs()
        return torch.stack([torch.full_like(away, 0.25), away], dim=1)


def test_hopskipjump_finds_a_start_where_uniform_noise_is_always_right() -> None:
    model, labels = Extreme().eval(), np.zeros(12, dtype=np.int64)
    images = np.full((12, 3, 16, 16), 0.5, dtype=np.float32)
    noise = np.random.default_rng(0).uniform(size=(200, 3, 16, 16)).astype(np.float32)
    assert (predict(model, noise)[0].argmax(1) == 0).all()
    attack = HopSkipJump(queries=200, probes=30)
    found = run_attack(model, attack, images, labels, ids(12), eps=0.6, norm="linf", mode="full")
    assert found.success.all()
    assert (lengths(found.best, images, "linf") >= 0.25 - 1e-6).all(), "the mean must move by a quarter"


def test_hopskipjump_without_any_wrong_image_ends_in_peace() -> None:
    class Sure(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.ones(len(x)), torch.zeros(len(x))], dim=1)

    images, labels = np.full((3, 3, 8, 8), 0.5, dtype=np.float32), np.zeros(3, dtype=np.int64)
    found = run_attack(Sure().eval(), HopSkipJump(queries=40), images, labels, ids(3), eps=0.1, norm="l2")
    assert not found.success.any() and np.array_equal(found.last, images) and (found.n_forward == 42).all()


def test_hopskipjump_keeps_up_with_foolbox_at_equal_queries() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = digits_net()
    right = predict(model, images)[0].argmax(1) == labels
    images, labels = images[right][:12], labels[right][:12]
    y = torch.from_numpy(labels)

    class Counted(torch.nn.Module):
        asked = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.asked += len(x)
            return model(x)

    starts = torch.from_numpy(images[::-1].copy())  # another sample of the set, where its class differs
    for shift in range(1, 12):
        same = model(starts).argmax(1) == y
        starts = torch.where(same[:, None, None, None], torch.from_numpy(np.roll(images, shift, axis=0)), starts)
    assert (model(starts).argmax(1) != y).all()
    for norm in ("linf", "l2"):
        counted = Counted().eval()
        wrapped = foolbox.PyTorchModel(counted, bounds=(0, 1), device="cpu")
        oracle = foolbox.attacks.HopSkipJumpAttack(steps=3, constraint=norm)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            theirs, _, _ = oracle(wrapped, torch.from_numpy(images), y, epsilons=None, starting_points=starts)
        budget = counted.asked // 12
        eps = {"linf": 1.0, "l2": 60.0}[norm]
        attack = HopSkipJump(queries=budget)
        ours = run_attack(model, attack, images, labels, ids(12), eps=eps, norm=norm, mode="full")
        assert ours.success.all()
        reached = np.median(lengths(ours.best, images, norm))
        assert reached <= 1.25 * np.median(lengths(theirs.numpy(), images, norm)), norm
