"""The loop with more than one of something: members of a battery, of an ensemble, draws of a random defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from attack_samples import digits_net, linear_samples

from windtunnel import engine
from windtunnel.attacks.base import Attack
from windtunnel.attacks.losses import margin
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, Purified, RandomDefense, repeat
from windtunnel.engine import AttackResult, Pipeline, run_attack, run_battery

EPS = 12 / 255
MEMBERS = (("noise", SignNoise(draws=3)), ("short", PGD(steps=3)), ("long", PGD(steps=15, loss="margin")))


class FromClean(Attack):
    """Planted attacks begin at the clean image and take one step, unless they say otherwise."""

    max_steps: ClassVar[int] = 1

    def init(self, x0: Any, y: Any, eps: Any, norm: str, generators: Any, query: Any) -> Any:
        return {"x": x0}


def ids(n: int) -> list[str]:
    return [f"sample-{i}" for i in range(n)]


def same(a: AttackResult, b: AttackResult) -> None:
    for name in ("best", "last", "success", "n_forward", "n_backward", "zero_gradient", "best_margin"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(a.first_success.filled(-1), b.first_success.filled(-1))


# ------------------------------------------------------------------------------------------------------------ batteries


def test_a_battery_is_its_members_one_after_the_other_on_what_is_left() -> None:
    model, x, y = digits_net()
    total, broken_by = run_battery(model, MEMBERS, x, y, ids(100), eps=EPS, norm="linf")
    alone = [run_attack(model, a, x, y, ids(100), eps=EPS, norm="linf") for _, a in MEMBERS]
    expected = [
        next((name for (name, _), r in zip(MEMBERS, alone, strict=True) if r.success[i]), None)
        if alone[0].clean_correct[i]
        else None
        for i in range(100)
    ]
    assert broken_by == expected
    assert {"short", "long", None} <= set(broken_by), "the planted case no longer tells the members apart"
    np.testing.assert_array_equal(total.success, np.any([r.success for r in alone], axis=0))
    # what was spent on a sample: all members up to the one that broke it, whose own count says when
    for i, name in enumerate(broken_by):
        if not total.clean_correct[i]:
            continue
        until = len(MEMBERS) if name is None else [m for m, _ in MEMBERS].index(name) + 1
        assert total.n_backward[i] == sum(r.n_backward[i] for r in alone[:until])
        assert total.n_forward[i] == sum(r.n_forward[i] for r in alone[:until])
        if name is not None:
            assert total.first_success[i] == alone[until - 1].first_success[i]
            np.testing.assert_array_equal(total.best[i], alone[until - 1].best[i])


def test_a_battery_of_one_is_that_attack_and_the_order_changes_the_cost_not_the_outcome() -> None:
    model, x, y = digits_net()
    one, broken_by = run_battery(model, MEMBERS[2:], x, y, ids(100), eps=EPS, norm="linf")
    same(one, run_attack(model, MEMBERS[2][1], x, y, ids(100), eps=EPS, norm="linf"))
    assert set(broken_by) == {"long", None}
    forward, _ = run_battery(model, MEMBERS, x, y, ids(100), eps=EPS, norm="linf")
    backward, _ = run_battery(model, MEMBERS[::-1], x, y, ids(100), eps=EPS, norm="linf")
    np.testing.assert_array_equal(forward.success, backward.success)
    assert forward.n_backward.sum() != backward.n_backward.sum()


def test_a_battery_in_full_mode_takes_every_member_to_its_end_and_keeps_the_worst_image() -> None:
    model, x, y = digits_net()
    total, _ = run_battery(model, MEMBERS, x, y, ids(100), eps=EPS, norm="linf", mode="full")
    alone = [run_attack(model, a, x, y, ids(100), eps=EPS, norm="linf", mode="full") for _, a in MEMBERS]
    assert (total.n_backward == sum(r.n_backward for r in alone)).all()
    best = np.max([np.where(r.success, r.best_margin, -np.inf) for r in alone], axis=0)
    fooled = total.success
    np.testing.assert_array_equal(total.best_margin[fooled], best[fooled])
    with pytest.raises(ValueError, match="at least one member"):
        run_battery(model, [], x, y, ids(100), eps=EPS, norm="linf")


# ------------------------------------------------------------------------------------------------------------ ensembles


class Pair(torch.nn.Module):
    """The mean of two models' logits, and the models themselves."""

    is_ensemble = True

    def __init__(self, *members: torch.nn.Module) -> None:
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([m(x) for m in self.members]).mean(0)


@dataclass(frozen=True, kw_only=True)
class AskEach(FromClean):
    """Asks every member and the whole, checks the answers against each other, stays where it is."""

    seen: Any = None

    def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
        parts = [query.gradient(rows["x"], margin, member=k) for k in range(query.n_members)]
        whole, _, gradient = query.gradient(rows["x"], lambda z, y: z[:, 0] - z[:, 1])
        torch.testing.assert_close(torch.stack([z for z, _, _ in parts]).mean(0), whole)
        self.seen.append((query.n_members, [query.logits(rows["x"], member=k) for k in range(query.n_members)], whole))
        return {"x": rows["x"]}


def test_members_answer_for_themselves_are_counted_and_judge_nothing() -> None:
    model, x, y = linear_samples(6)
    other, _, _ = linear_samples(6)
    other.w.mul_(-1)  # on its own this member is wrong everywhere
    other.bias *= -1
    seen: list[Any] = []
    pair = Pair(model, model, other)
    result = run_attack(pair, AskEach(seen=seen), x, y, ids(6), eps=0.01, norm="linf", mode="full")
    members, parts, whole = seen[0]
    assert members == 3
    torch.testing.assert_close(parts[0], model(torch.from_numpy(x)))
    assert (parts[2].argmax(1) != torch.from_numpy(y)).all()
    assert not result.success.any(), "a member's wrong answer was taken for the ensemble's"
    # clean (3), three members' gradients, the whole (3), three members' logits, the last image (3): passes of one model
    assert (result.n_forward == 3 + 3 + 3 + 3 + 3).all()
    assert (result.n_backward == 3 + 3).all()
    torch.testing.assert_close(whole, pair(torch.from_numpy(x)))


# ------------------------------------------------------------------------------------------------------- nearest images


@dataclass(frozen=True, kw_only=True)
class Overshoot(FromClean):
    """Walks straight across the boundary of the linear model, far out of the ball and then back towards x0."""

    minimal_norm: ClassVar[bool] = True
    direction: Any = None

    max_steps: ClassVar[int] = 20

    def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
        length = (0.2 - 0.01 * rows["t"]).view(-1, 1, 1, 1)
        sign = torch.where(rows["y"] == 0, -1.0, 1.0).view(-1, 1, 1, 1)
        query.logits((rows["x0"] + length * sign * self.direction).clamp(0, 1).to(rows["x0"].dtype))
        return {"x": rows["x0"]}


def test_of_fooling_images_inside_the_ball_the_nearest_is_kept_and_outside_nothing_counts() -> None:
    model, x, y = linear_samples(8, margin=4.0)
    direction = model.w.sign().reshape(1, 3, 8, 8)
    distance = 4.0 / float(model.w.abs().sum())  # .026 for this seed
    grid = [0.2 - 0.01 * k for k in range(20)]
    nearest = min(g for g in grid if g > distance)
    attack = Overshoot(direction=direction)
    found = run_attack(model, attack, x, y, ids(8), eps=0.1, norm="linf", mode="full")
    assert found.success.all()
    reached = np.abs(found.best - x).reshape(8, -1).max(1)
    np.testing.assert_allclose(reached, nearest, atol=1e-6)
    outside = run_attack(model, attack, x, y, ids(8), eps=0.9 * distance, norm="linf", mode="full")
    assert not outside.success.any() and not outside.bound_violation.any()
    assert np.abs(outside.best - x).max() <= 0.9 * distance


# ------------------------------------------------------------------------------------------------------ random defenses


class Coin(RandomDefense):
    """Adds the same constant to every pixel of an image: up or down by ``step``, at the flip of a coin."""

    is_random: ClassVar[bool] = True
    rules: ClassVar[tuple[str, ...]] = ("identity", "exact")

    def __init__(self, step: float, share: float = 0.5) -> None:
        self.step, self.share = step, share

    def draw(self, generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Mapping[str, np.ndarray]:
        return {"up": np.array([g.random() < self.share for g in generators])}

    def purify_drawn(self, images: np.ndarray, draw: Mapping[str, np.ndarray]) -> Purified:
        move = np.where(draw["up"], self.step, -self.step).astype(np.float32)
        return Purified(np.clip(images + move[:, None, None, None], 0, 1))

    def backward_rules_drawn(self, draws: Any) -> dict[str, Any]:
        return {"identity": lambda x: x, "exact": lambda x: 1 * x}


class Brightness(torch.nn.Module):
    """Class 1 where the mean pixel is above .5; smooth, so that both classes have logits to compare."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 40 * (x.flatten(1).double().mean(1) - 0.5)
        return torch.stack([-z, z], dim=1)


def grey(levels: Sequence[float]) -> np.ndarray:
    return np.stack([np.full((3, 4, 4), level, dtype=np.float32) for level in levels])


def test_a_random_pipeline_averages_over_draws_and_hands_on_what_most_draws_get_wrong() -> None:
    """Label 0 (dark): pictures so dark that no draw errs, so bright that every draw errs, and between."""
    x, y = grey([0.30, 0.49, 0.70]), np.zeros(3, dtype=np.int64)
    model = Brightness().eval()
    result = run_attack(
        model, PGD(steps=4), x, y, ids(3), eps=0.05, norm="linf", mode="full", defense=Coin(0.1), rule="exact", eot=5
    )
    # .30 + .05 + .1 < .5: no draw errs. .49 + .05 - .1 < .5 < .49 + .05 + .1: the coin decides. .70 - .1 > .5: always.
    assert not result.success[0] and result.success[2]
    assert result.clean_correct.tolist()[0] and not result.clean_correct[2]
    assert result.best[1].mean() > 0.515  # brighter than the clean one: more draws and larger margins
    # clean judged (5), 5 queries of PGD with the last image (5 each), 3 candidates on 10 draws each
    assert (result.n_forward == 5 + 5 * 5 + 30).all()
    assert (result.n_backward == 4 * 5).all()


def test_dice_belong_to_the_sample_not_to_the_batch() -> None:
    x, y = grey(np.linspace(0.35, 0.6, 12).tolist()), np.zeros(12, dtype=np.int64)
    kwargs: dict[str, Any] = {"eps": 0.03, "norm": "linf", "mode": "full", "defense": Coin(0.08), "eot": 2, "seed": 3}
    model, attack = Brightness().eval(), PGD(steps=3)
    whole = run_attack(model, attack, x, y, ids(12), **kwargs, batch_size=12)
    small = run_attack(model, attack, x, y, ids(12), **kwargs, batch_size=5)
    same(whole, small)
    order = np.random.default_rng(0).permutation(12)
    mixed = run_attack(model, attack, x[order], y[order], [ids(12)[i] for i in order], **kwargs, batch_size=7)
    same(mixed, whole[order])
    other = run_attack(model, attack, x, y, ids(12), **(kwargs | {"seed": 4}), batch_size=12)
    assert (other.best_margin != whole.best_margin).any()


@dataclass(frozen=True, kw_only=True)
class Brighter(FromClean):
    """Raises every pixel by ``share`` of the budget."""

    uses_gradient: ClassVar[bool] = False
    share: float = 1.0

    def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
        query.logits(rows["x"])
        return {"x": rows["x0"] + (self.share * rows["eps"]).view(-1, 1, 1, 1).to(rows["x0"].dtype)}


class Step(torch.nn.Module):
    """Class 1 above .5, with a margin that *falls* with brightness beyond: a larger margin is not a likelier error."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).double().mean(1)
        z = torch.where(mean > 0.5, 10 * (1 - mean), mean - 0.5)
        return torch.stack([-z, z], dim=1)


class Tilted(Coin):
    """Up by twice the step at one draw in three, else down: what is right on which draws depends on the brightness."""

    def purify_drawn(self, images: np.ndarray, draw: Mapping[str, np.ndarray]) -> Purified:
        move = np.where(draw["up"], 2 * self.step, -self.step / 2).astype(np.float32)
        return Purified(np.clip(images + move[:, None, None, None], 0, 1))


def test_a_battery_on_a_random_defense_keeps_the_image_that_most_draws_get_wrong() -> None:
    """In either order: not the image with the larger mean margin, and not the first below one half."""
    x, y = grey([0.40] * 6), np.zeros(6, dtype=np.int64)
    kwargs: dict[str, Any] = {"eps": 0.2, "norm": "linf", "mode": "full", "defense": Tilted(0.1, share=0.4)}
    little, much = ("little", Brighter(share=0.4)), ("much", Brighter(share=1.0))
    alone = [run_attack(Step().eval(), a, x, y, ids(6), **kwargs) for _, a in (little, much)]
    least = np.minimum(alone[0].p_correct.data, alone[1].p_correct.data)
    assert (alone[1].p_correct.data < alone[0].p_correct.data).any(), "the planted case no longer tells them apart"
    for members in ((little, much), (much, little)):
        both, _ = run_battery(Step().eval(), members, x, y, ids(6), **kwargs)
        np.testing.assert_array_equal(both.p_correct.data, least)
        assert not both.p_correct.mask.any()
    assert run_attack(Step().eval(), much[1], x, y, ids(6), eps=0.2, norm="linf").p_correct.mask.all()


def test_a_random_defense_is_refused_where_its_dice_would_be_lost() -> None:
    x, y = grey([0.4]), np.zeros(1, dtype=np.int64)
    model, coin = Brightness().eval(), Coin(0.1)
    with pytest.raises(ValueError, match="never searched"):
        run_attack(model, PGD(), x, y, ids(1), eps=0.01, norm="linf", mode="search", defense=coin)
    with pytest.raises(ValueError, match="unknown backward rule 'surrogate-1'"):
        Pipeline(model, defense=coin, rule="surrogate-1")
    with pytest.raises(TypeError, match="draw its dice first"):
        Pipeline(model, defense=coin).purified(torch.from_numpy(x))
    with pytest.raises(TypeError, match="one generator per image"):
        repeat(coin, x, 1)


# --------------------------------------------------------------------------------------------------- the defense itself


class Halve(Defense):
    """Pulls every pixel half way to grey."""

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(0.5 + (images - 0.5) / 2)


@dataclass(frozen=True, kw_only=True)
class AskDefense(FromClean):
    seen: Any = None

    def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
        self.seen.append(query.defense_error(rows["x"]))
        return {"x": rows["x"]}


def test_the_error_of_a_defense_and_its_gradient_through_the_rule() -> None:
    x, y = grey([0.2, 0.9]), np.zeros(2, dtype=np.int64)
    seen: list[Any] = []
    model, settings = Brightness().eval(), {"eps": 0.01, "norm": "linf", "mode": "full"}
    run_attack(model, AskDefense(seen=seen), x, y, ids(2), defense=Halve(), rule=lambda x: x / 2, **settings)
    error, gradient = seen[0]
    np.testing.assert_allclose(error.numpy(), [(0.3 / 2) ** 2, (0.4 / 2) ** 2], rtol=1e-5)
    # d/dx mean (g(x) - x)^2 = 2/48 (g(x) - x)(rule' - 1), the real value with the stand-in's slope of one half
    expected = 2 / 48 * np.array([0.15, -0.2]) * (0.5 - 1)
    np.testing.assert_allclose(gradient.numpy()[:, 0, 0, 0], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="no defense whose error"):
        run_attack(model, AskDefense(seen=[]), x, y, ids(2), **settings)


def test_the_losses_are_those_of_the_mean_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw is the plain pipeline; the mean of many equal dice is that draw."""
    x, y = grey([0.45, 0.55]), np.zeros(2, dtype=np.int64)
    model = Brightness().eval()
    sure = Coin(0.1, share=1.1)  # always up
    kwargs: dict[str, Any] = {"eps": 0.02, "norm": "linf", "mode": "full", "defense": sure}
    one = run_attack(model, PGD(steps=2), x, y, ids(2), **kwargs, eot=1)
    many = run_attack(model, PGD(steps=2), x, y, ids(2), **kwargs, eot=4)
    np.testing.assert_array_equal(one.best, many.best)
    monkeypatch.setattr(engine, "CHOOSING_DRAWS", 3)
    fewer = run_attack(model, PGD(steps=2), x, y, ids(2), **kwargs, eot=1)
    assert (one.n_forward - fewer.n_forward == 3 * 7).all()


def test_a_sample_leaves_a_search_only_with_an_image_that_fools_as_stored() -> None:
    """PGD in steps of .3 levels over a boundary at 4.1: the float image crosses it at 4.2, the stored one at 4.5."""
    model, _, _ = linear_samples(1)
    x = np.full((1, 3, 8, 8), 120 / 255, dtype=np.float32)
    gap = float(np.abs(model.w.numpy()).sum()) / 255
    model.bias += -float(model.score(torch.from_numpy(x))) + 4.1 * gap
    attack = PGD(steps=26, step_size=0.3 / 8, random_start=False)
    options: dict[str, Any] = {"eps": 8 / 255, "norm": "linf", "mode": "search"}
    y = np.zeros(1, dtype=np.int64)
    in_float = run_attack(model, attack, x, y, ids(1), **options)
    stored = engine.as_stored(engine.store_linf(in_float.best, x, 8 / 255))
    assert in_float.success.all() and model(torch.from_numpy(stored)).argmax(1).item() == 0, "nothing was lost"
    kept = run_attack(model, attack, x, y, ids(1), **options, to_be_stored=True)
    assert kept.success.all() and model(torch.from_numpy(kept.best)).argmax(1).item() == 1
    np.testing.assert_array_equal(engine.as_stored(engine.store_linf(kept.best, x, 8 / 255)), kept.best)
    assert kept.first_success[0] > in_float.first_success[0]


def test_a_nearest_image_counts_only_as_it_will_be_stored() -> None:
    """On the 8-bit grid: an image between two levels that fools in float and not when rounded is no success."""
    model, _, _ = linear_samples(1)
    w = model.w.numpy().reshape(1, 3, 8, 8)
    x = np.full((1, 3, 8, 8), 120 / 255, dtype=np.float32)
    gap = float(np.abs(model.w.numpy()).sum()) / 255  # one level along the signs of w moves the score by this
    model.bias += -float(model.score(torch.from_numpy(x))) + 3.4 * gap  # class 0 until 3.4 levels down
    found = run_attack(
        model, Overshoot(direction=torch.from_numpy(np.sign(w))), x, np.zeros(1, dtype=np.int64), ids(1),
        eps=8 / 255, norm="linf", mode="full", to_be_stored=True,
    )  # fmt: skip
    levels = np.rint(np.abs(found.best - x) * 255)
    # the walk asks at 20 distances of .01 = 2.55 levels: 5.1 is the nearest over the boundary, stored as 5
    assert found.success.all() and set(np.unique(levels)) == {5}
    np.testing.assert_allclose(found.best * 255, np.rint(found.best * 255), atol=1e-4)
    # the boundary between 5 and 5.1 levels: in float it is crossed, as stored it is not, and the next is 7.65
    model.bias += 1.65 * gap
    found = run_attack(
        model, Overshoot(direction=torch.from_numpy(np.sign(w))), x, np.zeros(1, dtype=np.int64), ids(1),
        eps=8 / 255, norm="linf", mode="full", to_be_stored=True,
    )  # fmt: skip
    assert found.success.all() and set(np.unique(np.rint(np.abs(found.best - x) * 255))) == {8}
