"""The loop: judging, counting, refilling, honesty flags, storage. Every fault is planted, every clean twin silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from attack_samples import Linear64, Scaled, digits_net, linear_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from windtunnel import engine
from windtunnel.attacks.base import Attack
from windtunnel.attacks.losses import ce, margin
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.backend import torch
from windtunnel.defenses.base import Defense, Purified
from windtunnel.engine import Pipeline, RowRandom, run_attack


def ids(n: int) -> list[str]:
    return [f"sample-{i}" for i in range(n)]


# ---------------------------------------------------------------------------------------------- planted attacks, models


@dataclass(frozen=True, kw_only=True)
class Climb(Attack):
    """Raises every pixel by 1/255 per step and notes, per call, the ages of the rows it was given."""

    uses_gradient: ClassVar[bool] = False
    log: Any = None
    steps: int = 6

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, x0: Any, y: Any, eps: Any, norm: str, generators: Any, query: Any) -> Any:
        self.log.append(("init", len(x0)))
        return {"x": x0, "start": x0}

    def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
        self.log.append(("step", rows["t"].tolist()))
        assert torch.equal(rows["start"], rows["x0"])  # a row keeps its own memory when others leave and enter
        query.logits(rows["x"])
        return rows | {"x": rows["x0"] + (rows["t"] + 1).view(-1, 1, 1, 1) / 255}


class Level(torch.nn.Module):
    """Fooled (class 1) once red has climbed ``needed[sample]`` levels above 100; blue - red names the sample."""

    def __init__(self, needed: np.ndarray) -> None:
        super().__init__()
        self.needed = torch.from_numpy(needed)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        which = torch.round(x[:, 2, 0, 0] * 255).long() - torch.round(x[:, 0, 0, 0] * 255).long()
        climbed = torch.round(x[:, 0, 0, 0] * 255) - 100
        gap = climbed - self.needed[which].float() + 0.5
        return torch.stack([torch.zeros_like(gap), gap], dim=1)


def climbing(n: int, needed: list[int]) -> tuple[Level, np.ndarray, np.ndarray]:
    """n samples that are fooled after ``needed[i]`` steps; the sample's number is the distance blue - red."""
    images = np.full((n, 3, 2, 2), 100 / 255, dtype=np.float32)
    images[:, 2] = ((100 + np.arange(n)) / 255).astype(np.float32)[:, None, None]
    return Level(np.array(needed)), images, np.zeros(n, dtype=np.int64)


def test_refilling_keeps_every_row_at_its_own_age_and_the_batch_full() -> None:
    needed = [1, 9, 3, 2, 9, 1, 5, 9, 4, 2, 9, 6]
    model, images, labels = climbing(12, needed)
    log: list[Any] = []
    result = run_attack(
        model, Climb(log=log), images, labels, ids(12), eps=6 / 255, norm="linf", mode="search", batch_size=4
    )
    assert result.success.tolist() == [k <= 6 for k in needed]
    # Judged images: the clean one is number 0, x after k steps is number k + 1.
    assert result.first_success.filled(-1).tolist() == [k + 1 if k <= 6 else -1 for k in needed]
    assert result.n_forward.tolist() == [k + 2 if k <= 6 else 8 for k in needed]
    steps = [entry[1] for entry in log if entry[0] == "step"]
    assert max(len(ages) for ages in steps) == 4
    assert any(len(set(ages)) > 1 for ages in steps), "no batch ever held rows of different ages: nothing was refilled"
    assert sum(entry[1] for entry in log if entry[0] == "init") == 12
    occupied = [len(ages) for ages in steps]
    entered_all = max(i for i, entry in enumerate(log) if entry[0] == "init")
    before = sum(1 for entry in log[:entered_all] if entry[0] == "step")
    assert min(occupied[:before]) == 4, "while samples waited, the batch was not full"
    assert [round(float(d * 255)) for d in (result.best - images).max(axis=(1, 2, 3))][0] == 1


def test_full_mode_takes_all_steps_and_keeps_best_and_last_apart() -> None:
    class Peak(torch.nn.Module):
        """The margin of the wrong class is largest after 3 steps and negative again from 5 on."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            climbed = torch.round(x[:, 0, 0, 0] * 255) - 100
            gap = 1.5 - (climbed - 3).abs()
            return torch.stack([torch.zeros_like(gap), gap], dim=1)

    _, images, labels = climbing(3, [0, 0, 0])
    result = run_attack(
        Peak().eval(), Climb(log=[]), images, labels, ids(3), eps=6 / 255, norm="linf", mode="full", batch_size=2
    )
    assert result.success.all() and result.clean_correct.all()
    assert np.allclose((result.best - images) * 255, 3, atol=1e-3)
    assert np.allclose((result.last - images) * 255, 6, atol=1e-3)
    assert np.allclose(result.best_margin, 1.5)
    assert result.first_success.tolist() == [3, 3, 3]
    assert (result.n_forward == 8).all() and (result.n_backward == 0).all()


def test_misclassified_clean_samples_are_attacked_in_full_mode_only() -> None:
    model, images, labels = linear_samples(6)
    labels = labels.copy()
    labels[2] = 1 - labels[2]
    options: dict[str, Any] = {"eps": 0.001, "norm": "linf"}
    search = run_attack(model, PGD(steps=3), images, labels, ids(6), mode="search", **options)
    full = run_attack(model, PGD(steps=3), images, labels, ids(6), mode="full", **options)
    assert search.success.tolist() == full.success.tolist() == [False, False, True, False, False, False]
    assert search.first_success[2] == full.first_success[2] == 0
    assert search.n_backward[2] == 0 and full.n_backward[2] == 3
    assert np.array_equal(search.best[2], images[2]) and not np.array_equal(full.last[2], images[2])
    assert not search.clean_correct[2] and search.first_success.mask[0]


def test_ties_and_the_best_iterate_agree_with_argmax() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 3)

    images = np.full((2, 3, 2, 2), 0.5, dtype=np.float32)
    result = run_attack(
        Constant().eval(), SignNoise(draws=2), images, np.array([0, 1]), ids(2), eps=0.1, norm="linf", mode="full"
    )
    assert result.success.tolist() == [False, True]  # argmax of a tie is class 0


def test_a_fooled_iterate_is_not_displaced_by_an_unfooled_one_of_the_same_margin() -> None:
    class Ties(torch.nn.Module):
        """Class 1 ties with class 0 (wrong, by argmax) after one step and with class 2 (right) after two."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            climbed = torch.round(x[:, 0, 0, 0] * 255) - 100
            zero, one = torch.zeros_like(climbed), torch.ones_like(climbed)
            return torch.stack([torch.where(climbed == 1, one, zero), one, torch.where(climbed == 2, one, zero)], dim=1)

    _, images, _ = climbing(2, [0, 0])
    result = run_attack(
        Ties().eval(), Climb(log=[]), images, np.ones(2, int), ids(2), eps=6 / 255, norm="linf", mode="full"
    )
    assert result.success.all() and (result.best_margin == 0).all()
    assert np.allclose((result.best - images) * 255, 1, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("mode", ["search", "full"])
def test_batch_size_and_order_change_no_bit(mode: Any) -> None:
    model, images, labels = linear_samples(40)
    eps = 4.0 / float(model.w.abs().sum()) * 1.2  # far enough that samples leave at different steps
    attack = PGD(steps=12, step_size=0.1)

    def run(order: np.ndarray, size: int) -> engine.AttackResult:
        names = [ids(40)[i] for i in order]
        options: dict[str, Any] = {"eps": eps, "norm": "linf", "mode": mode, "seed": 3, "batch_size": size}
        return run_attack(model, attack, images[order], labels[order], names, **options)

    reference = run(np.arange(40), 64)
    assert len(set(reference.n_forward.tolist())) > 1 or mode == "full"
    for order, size in ((np.arange(40), 1), (np.arange(40), 7), (np.random.default_rng(0).permutation(40), 7)):
        other = run(order, size)
        for field in ("best", "last", "success", "n_forward", "n_backward", "best_margin", "zero_gradient"):
            assert np.array_equal(getattr(other, field), getattr(reference, field)[order]), (field, size)
        assert np.array_equal(other.first_success.filled(-1), reference.first_success.filled(-1)[order])


def test_random_streams_depend_on_seed_and_sample_only() -> None:
    many = RowRandom.keyed(5, ["a", "b", "c"])
    first = many.uniform(4)
    assert torch.equal(RowRandom.keyed(5, ["c"]).uniform(4), first[2:])
    assert not torch.equal(RowRandom.keyed(6, ["c"]).uniform(4), first[2:])
    part = many.select(torch.tensor([False, True, True]))  # only b and c go on
    second = part.uniform(4)
    joined = many.select(torch.tensor([0])).join(part)
    third = joined.uniform(4)
    whole = RowRandom.keyed(5, ["a", "b", "c"]).uniform(12)
    assert torch.equal(first, whole[:, :4]) and torch.equal(third[0], whole[0, 4:8])
    assert torch.equal(second[0], whole[1, 4:8]) and torch.equal(third[1], whole[1, 8:])
    longer = RowRandom.keyed(5, ["a", "b", "c"]).uniform(16)
    fourth = many.uniform(4)  # the streams were shared, not copied: each goes on where its row stopped
    assert torch.equal(fourth[0], longer[0, 8:12]) and torch.equal(
        fourth[1:], torch.stack([longer[1, 12:], longer[2, 12:]])
    )
    drawn = RowRandom.keyed(0, range(500)).integers(torch.arange(1, 501))
    assert drawn.shape == (500,) and (drawn >= 0).all() and (drawn < torch.arange(1, 501)).all()
    normal = RowRandom.keyed(0, range(4)).normal(3, 50, 50)
    assert normal.shape == (4, 3, 50, 50) and abs(float(normal.mean())) < 0.02 and abs(float(normal.std()) - 1) < 0.02


def test_inputs_model_and_global_random_state_stay_as_they_were() -> None:
    model, images, labels = digits_net()
    before = images.copy(), labels.copy(), torch.get_rng_state(), np.random.get_state()[1].copy()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    run_attack(model, PGD(steps=2), images, labels, ids(100), eps=0.1, norm="linf")
    assert np.array_equal(images, before[0]) and np.array_equal(labels, before[1])
    assert torch.equal(torch.get_rng_state(), before[2]) and np.array_equal(np.random.get_state()[1], before[3])
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_run_inside_no_grad_or_inference_mode_is_the_same_run() -> None:
    model, images, labels = digits_net()

    def run() -> engine.AttackResult:
        return run_attack(model, PGD(steps=3), images[:9], labels[:9], ids(9), eps=0.1, norm="linf", mode="full")

    plain = run()
    with torch.no_grad():
        assert np.array_equal(run().best, plain.best)
    with torch.inference_mode():
        assert np.array_equal(run().best, plain.best)


# ------------------------------------------------------------------------------------------------------ the pipeline


@dataclass(frozen=True, kw_only=True)
class Coarse(Defense):
    """Four grey levels, then a little darker: not idempotent, and nowhere differentiable to anything but zero."""

    rules: ClassVar[tuple[str, ...]] = ("identity", "squared")

    def purify(self, images: np.ndarray) -> Purified:
        images *= 1.0  # a defense may write into its input
        images -= 0.05
        return Purified((np.rint(np.clip(images, 0, 1) * 4) / 4).astype(np.float32))

    def backward_rules(self, rounds: int = 1) -> dict[str, Any]:
        def forbidden(x: Any) -> Any:
            raise AssertionError("the identity needs no forward of its own")

        return {"identity": forbidden, "squared": lambda x: rounds * x**2}


class Quadratic(torch.nn.Module):
    """logits (0, sum a z^2): the gradient at z is 2 a z, so it tells at which point it was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.linspace(-1, 1, 12).view(1, 3, 2, 2)
        self.eval()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        value = (self.a * z**2).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(value), value], dim=1)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("rule", ["identity", "squared"])
def test_gradient_goes_straight_through_by_the_rule_and_the_value_is_real(rule: str, rounds: int) -> None:
    model, defense = Quadratic(), Coarse()
    x = torch.from_numpy(np.random.default_rng(0).uniform(0.1, 0.9, (5, 3, 2, 2)).astype(np.float32))
    kept = x.clone()
    z = x.numpy().copy()
    for _ in range(rounds):
        z = defense.purify(z).images
    leaf = x.clone().requires_grad_()
    logits = Pipeline(model, defense=defense, rounds=rounds, rule=rule).differentiable(leaf)
    assert torch.equal(logits, model(torch.from_numpy(z)))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), leaf)
    at_purified = 2 * model.a * torch.from_numpy(z)
    expected = at_purified if rule == "identity" else at_purified * 2 * rounds * x
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.equal(x, kept)
    # A callable serves as a rule too.
    logits = Pipeline(model, defense=defense, rounds=rounds, rule=lambda x: 5 * x).differentiable(leaf)
    assert torch.allclose(torch.autograd.grad(logits[:, 1].sum(), leaf)[0], 5 * at_purified, atol=1e-6)


def test_the_attack_is_judged_on_the_real_defense() -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.15, "norm": "linf", "mode": "full"}
    through = run_attack(model, PGD(steps=10), images, labels, ids(100), defense=Coarse(), rounds=2, **options)
    cleaned = through.best.copy()
    for _ in range(2):
        cleaned = Coarse().purify(cleaned).images
    wrong = engine.predict(model, cleaned)[0].argmax(1) != labels
    assert np.array_equal(wrong, through.success)
    assert through.success.mean() > 0


def test_rules_and_rounds_are_checked() -> None:
    model = Quadratic()
    with pytest.raises(ValueError, match="identity, noise, squared"):
        Pipeline(model, defense=Coarse(), rule="jpeg")
    with pytest.raises(ValueError, match="no defense"):
        Pipeline(model, rule="blur")
    with pytest.raises(ValueError, match="rounds"):
        Pipeline(model, defense=Coarse(), rounds=0)


def test_a_random_defense_is_never_searched() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Noise(Coarse):
        is_random: ClassVar[bool] = True

    model, images, labels = digits_net()
    with pytest.raises(ValueError, match="never searched"):
        run_attack(model, PGD(), images, labels, ids(100), eps=0.1, norm="linf", mode="search", defense=Noise())


# ---------------------------------------------------------------------------------------------------- honesty flags


def test_saturated_logits_show_as_zero_gradients_and_other_losses_mend_them() -> None:
    model, images, labels = digits_net()
    saturated = Scaled(model, 1000.0)
    options: dict[str, Any] = {"eps": 0.1, "norm": "linf", "mode": "full"}
    clean = run_attack(model, PGD(steps=10), images, labels, ids(100), **options)
    stuck = run_attack(saturated, PGD(steps=10), images, labels, ids(100), **options)
    mended = run_attack(saturated, PGD(steps=10, loss="dlr"), images, labels, ids(100), **options)
    by_margin = run_attack(saturated, PGD(steps=10, loss="margin"), images, labels, ids(100), **options)
    assert not clean.zero_gradient.any() and not mended.zero_gradient.any() and not by_margin.zero_gradient.any()
    share = stuck.zero_gradient[stuck.clean_correct].mean()
    assert share > 0.5
    assert stuck.success.mean() < clean.success.mean() - 0.2
    assert min(mended.success.mean(), by_margin.success.mean()) > clean.success.mean() - 0.05
    frozen = stuck.zero_gradient & ~stuck.success
    assert (stuck.zero_gradient_share[frozen] > 0.9).all()


def test_nan_logits_are_wrong_and_named_and_their_neighbours_untouched() -> None:
    class Broken(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1, 0, 0] > 0.999, torch.nan, self.model(x))

    model, images, labels = digits_net()
    images = images[:20].copy()
    images[:, :, 0, 0] = 0.5
    images[3, :, 0, 0] = images[11, :, 0, 0] = 1.0
    labels = labels.copy()
    labels[[3, 11]] = 0  # argmax of NaN is class 0: it must not pass for a right answer
    options: dict[str, Any] = {"eps": 0.01, "norm": "linf", "mode": "full"}
    result = run_attack(Broken(model), PGD(steps=3), images, labels[:20], ids(20), **options)
    assert np.nonzero(result.nan)[0].tolist() == [3, 11]
    assert result.success[[3, 11]].all() and not result.clean_correct[[3, 11]].any()
    others = np.setdiff1d(np.arange(20), [3, 11])
    sound = run_attack(model, PGD(steps=3), images, labels[:20], ids(20), **options)
    assert np.array_equal(result.last[others], sound.last[others])
    assert np.isfinite(result.best).all() and not result.bound_violation.any()


def test_nan_gradients_are_named_and_do_not_reach_the_image() -> None:
    class Root(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            value = (x[:, 0, 0, 0] - 0.5).sqrt() + x.sum((1, 2, 3)) * 0.01  # at 0.5: value 0, slope infinite
            value = torch.where(x[:, 1, 0, 0] > 0.9, value * (x[:, 0, 0, 0] - 0.5), value)  # inf * 0: NaN
            return torch.stack([torch.ones_like(value), value], dim=1)

    images = np.full((2, 3, 2, 2), 0.5, dtype=np.float32)
    images[0, 0, 0, 0] = 0.7
    images[1, 1, 0, 0] = 1.0
    attack = PGD(steps=1, random_start=False)
    result = run_attack(Root().eval(), attack, images, np.zeros(2, int), ids(2), eps=0.01, norm="linf", mode="full")
    assert result.nan_gradient.tolist() == [False, True]
    assert np.isfinite(result.last).all() and not result.nan.any()


def test_leaving_the_ball_or_the_box_is_a_violation() -> None:
    model, images, labels = climbing(4, [99] * 4)
    inside = run_attack(model, Climb(log=[]), images, labels, ids(4), eps=6 / 255, norm="linf", mode="full")
    outside = run_attack(model, Climb(log=[]), images, labels, ids(4), eps=5 / 255, norm="linf", mode="full")
    assert not inside.bound_violation.any() and outside.bound_violation.all()
    norm = 6 / 255 * np.sqrt(12)
    for eps, violated in ((norm * 1.001, False), (norm * 0.999, True)):
        assert engine._outside(inside.last, images, eps, "l2").tolist() == [violated] * 4
    assert engine._outside(np.full((1, 3, 2, 2), np.nan, np.float32), images[:1], 1.0, "linf").all()
    high = np.full((1, 3, 2, 2), 1.01, np.float32)
    assert engine._outside(high, np.ones_like(high), 0.1, "linf").all()


def test_an_unfrozen_model_is_refused_and_one_that_is_switched_during_the_run_is_found() -> None:
    model = Linear64()
    _, images, labels = linear_samples(2)
    options: dict[str, Any] = {"eps": 0.01, "norm": "linf"}
    with pytest.raises(engine.ModelNotGuarded, match="train mode"):
        run_attack(Linear64().train(), PGD(), images, labels, ids(2), **options)
    learning = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).eval()
    with pytest.raises(engine.ModelNotGuarded, match="gradient"):
        run_attack(learning, PGD(), images, labels, ids(2), **options)

    @dataclass(frozen=True, kw_only=True)
    class Saboteur(PGD):
        def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
            model.train()
            return super().step(rows, norm, generators, query)

    with pytest.raises(engine.ModelNotGuarded):
        run_attack(model, Saboteur(steps=1), images, labels, ids(2), **options)


def test_frozen_gives_every_part_its_own_flag_back() -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 1)).train()
    model[0].eval()
    model[1].weight.requires_grad_(False)
    with engine.frozen(model):
        engine.check_guarded(model)
    assert model.training and not model[0].training and model[1].training
    assert not model[1].weight.requires_grad and model[1].bias.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 3, 8, 8))}, "float32"),
        ({"images": np.full((2, 3, 8, 8), 1.2, np.float32)}, "lie in"),
        ({"images": np.full((2, 3, 8, 8), np.nan, np.float32)}, "lie in"),
        ({"labels": np.array([0, 7])}, "out of range"),
        ({"labels": np.array([0, -1])}, "negative"),
        ({"labels": np.array([0.0, 1.0])}, "integers"),
        ({"sample_ids": ["a"]}, "not the same number"),
        ({"eps": -0.1}, "eps"),
        ({"norm": "l1"}, "norms linf, l2"),
        ({"mode": "quick"}, "search"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str) -> None:
    model, images, labels = linear_samples(2)
    given: dict[str, Any] = {"images": images, "labels": labels, "sample_ids": ids(2), "eps": 0.1, "norm": "linf"}
    given |= change
    with pytest.raises(ValueError, match=message):
        run_attack(
            model, PGD(), given.pop("images"), given.pop("labels"), given.pop("sample_ids"), **given
        )  # fmt: skip


def test_progress_tells_the_robust_accuracy_so_far() -> None:
    model, images, labels = climbing(12, [1, 9, 3, 2, 9, 1, 5, 9, 4, 2, 9, 6])
    told: list[tuple[int, int, float]] = []
    run_attack(
        model, Climb(log=[]), images, labels, ids(12), eps=6 / 255, norm="linf", batch_size=4,
        progress=lambda *news: told.append(news),
    )  # fmt: skip
    done = [news[0] for news in told]
    assert done == sorted(set(done)) and done[-1] == 12 and told[-1] == (12, 12, 4 / 12)


def test_an_empty_set_is_attacked_in_no_time() -> None:
    model, images, labels = linear_samples(2)
    result = run_attack(model, PGD(), images[:0], labels[:0], [], eps=0.1, norm="linf")
    assert len(result) == 0 and result.best.shape == (0, 3, 8, 8)


# ------------------------------------------------------------------------------------------------ queries and counting


def test_queries_are_counted_and_answer_what_they_say() -> None:
    model, images, labels = linear_samples(4)
    asked: list[Any] = []

    @dataclass(frozen=True, kw_only=True)
    class Asking(PGD):
        def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
            logits, loss, gradient = query.gradient(rows["x"], margin)
            assert torch.equal(query.logits(rows["x"]), logits) and not logits.requires_grad
            asked.append((loss, gradient, query.n_classes, rows["y"]))
            return {"x": rows["x"]}

    options: dict[str, Any] = {"eps": 0.01, "norm": "linf", "mode": "full"}
    result = run_attack(model, Asking(steps=2, random_start=False), images, labels, ids(4), **options)
    assert (result.n_forward == 1 + 2 * 2 + 1).all() and (result.n_backward == 2).all()
    loss, gradient, n_classes, y = asked[0]
    assert n_classes == 4 and torch.allclose(loss, torch.full((4,), -4.0, dtype=loss.dtype), atol=1e-4)
    sign = torch.where(y == 0, -1.0, 1.0)[:, None]
    assert torch.allclose(gradient.flatten(1), sign * model.w.float(), atol=1e-5)

    @dataclass(frozen=True, kw_only=True)
    class Greedy(PGD):
        def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
            query.logits(rows["x"][:1])
            return rows

    with pytest.raises(ValueError, match="4 rows"):
        run_attack(model, Greedy(steps=1), images, labels, ids(4), **options)


def test_foreign_code_sees_a_module_that_counts_but_is_not_judged() -> None:
    model, images, labels = linear_samples(4)

    @dataclass(frozen=True, kw_only=True)
    class Foreign(PGD):
        @property
        def max_steps(self) -> int:
            return 0

        def init(self, x0: Any, y: Any, eps: Any, norm: str, generators: Any, query: Any) -> Any:
            module = query.module()
            module.train()
            assert next(module.parameters()).device == x0.device and not model.training
            leaf = (1 - x0).requires_grad_()  # far outside the ball, and fooled there
            with torch.enable_grad():
                torch.autograd.grad(ce(module(leaf), y).sum(), leaf)
            module(x0[:2])  # half of the rows
            return {"x": x0}

    result = run_attack(model, Foreign(), images, labels, ids(4), eps=0.01, norm="linf", mode="full")
    assert not result.success.any() and np.array_equal(result.best, images)
    assert (result.n_forward == 4).all() and (result.n_backward == 1).all()  # 1 clean, 1 + 2/4 foreign, 1 judged; up


# ------------------------------------------------------------------------------------------------ looking and storing


def test_predict_is_one_forward_per_image_in_any_batch() -> None:
    class Counting(Linear64):
        seen = 0

        def features(self, x: torch.Tensor) -> torch.Tensor:
            type(self).seen += len(x)
            return self.score(x)[:, None].float()

        def logits_from(self, features: torch.Tensor) -> torch.Tensor:
            return torch.cat([features, -features], dim=1)

    _, images, _ = linear_samples(11)
    model = Counting()
    logits, features = engine.predict(model, images, batch_size=4, with_features=True)
    assert Counting.seen == 11 and logits.dtype == features.dtype == np.float32
    assert logits.shape == (11, 2) and features.shape == (11, 1) and np.array_equal(logits[:, 0], features[:, 0])
    plain, nothing = engine.predict(model, images, batch_size=11)
    assert nothing is None and plain.shape == (11, 4)
    assert np.array_equal(plain, engine.predict(model, images, batch_size=3)[0])
    assert engine.predict(model, images[:0])[0].shape == (0, 4)
    with pytest.raises(engine.ModelNotGuarded):
        engine.predict(Linear64().train(), images)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 64), st.booleans())
def test_8_bit_storage_stays_in_the_ball_and_is_the_nearest_image_there(seed: int, eps_255: int, whole: bool) -> None:
    draw = np.random.default_rng(seed)
    eps = (eps_255 + (0 if whole else draw.uniform(0, 0.99))) / 255
    levels = draw.integers(0, 256, (2, 3, 4, 4))
    clean = (levels / 255).astype(np.float32)
    adversarial = np.clip(clean + draw.uniform(-eps, eps, clean.shape), 0, 1).astype(np.float32)
    stored = engine.store_linf(adversarial, clean, eps)
    assert stored.dtype == np.uint8
    moved = np.abs(stored.astype(int) - levels)
    assert moved.max() <= eps_255
    nearest = np.rint(adversarial.astype(np.float64) * 255)
    assert (stored == nearest)[np.abs(nearest - levels) <= eps_255].all()
    again = engine.as_stored(stored)
    assert again.dtype == np.float32 and np.array_equal(engine.store_linf(again, clean, eps), stored)


def test_storage_of_what_is_not_on_the_grid_is_refused_and_l2_images_are_kept_as_they_are() -> None:
    clean = np.full((1, 3, 2, 2), 0.5, dtype=np.float32)  # 127.5 of 255
    with pytest.raises(ValueError, match="8-bit grid"):
        engine.store_linf(clean, clean, 0.1)
    grid = np.full((1, 3, 2, 2), 128 / 255, dtype=np.float32)
    broken = grid.copy()
    broken[0, 0, 0, 0] = np.nan
    assert (engine.store_linf(broken, grid, 0.1) == 128).all()
    assert np.array_equal(engine.as_stored(clean), clean)
