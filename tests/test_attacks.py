"""The attacks against closed forms, against torchattacks and Foolbox, and against the contract that all share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from attack_samples import Curved64, Scaled, digits_net, linear_samples

import windtunnel
from windtunnel import registry
from windtunnel.attacks import losses
from windtunnel.attacks.apgd import APGD
from windtunnel.attacks.base import Attack
from windtunnel.attacks.fgsm import FGSM
from windtunnel.attacks.geometry import linf_bounds
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.attacks.square import Square
from windtunnel.backend import torch
from windtunnel.defenses.bits import Bits
from windtunnel.engine import RowRandom, predict, run_attack

SHORT: dict[str, dict[str, Any]] = {  # settings that make the contract test quick
    "adaea": {"steps": 4},
    "apgd": {"steps": 5},
    "cw": {"steps": 8, "searches": 2, "restarts": 2, "learning_rate": 0.05},
    "cwa": {"steps": 4, "random_start": True},
    "deepfool": {"steps": 2, "candidates": 3, "restarts": 2},
    "ensemble_pgd": {"steps": 4},
    "fab": {"steps": 2, "targets": 2, "restarts": 2},
    "mim": {"steps": 4, "restarts": 2},
    "pma": {"steps": 4},
    "spsa": {"steps": 4, "samples": 8},
    "hopskipjump": {"queries": 150, "probes": 20},
    "svre": {"steps": 3, "inner_steps": 4, "random_start": True},
    "transfer": {"steps": 4, "random_start": True},
    "pgd": {"steps": 4},
    "square": {"queries": 20},
    "sign_noise": {"draws": 3},
    "torchattacks": {"class_name": "PGD", "arguments": {"steps": 3}},
}
CATALOGUE = Path(windtunnel.__file__).parent / "catalogue"


def ids(n: int) -> list[str]:
    return [f"sample-{i}" for i in range(n)]


def behind(name: str) -> dict[str, Any]:
    """A defense for the attacks that need one."""
    needed = registry.card("attack", name).constants.get("needs_defense", False)
    return {"defense": Bits(depth=3), "rule": "own"} if needed else {}


def shown(options: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """What the model sees of x."""
    return options["defense"].purify(x).images if "defense" in options else x


def cases() -> list[Any]:
    """Every registered attack under every norm that it names; one that is aimed at a defense has tests of its own."""
    found = []
    for name in registry.names("attack"):
        if name == "codec_pgd":
            continue
        for norm in registry.card("attack", name).constants.get("norms", ("linf",)):
            settings = dict(SHORT.get(name, {}))
            if name == "torchattacks" and norm == "l2":
                settings["class_name"] = "PGDL2"
            found.append(pytest.param(name, norm, settings, id=f"{name}-{norm}"))
    return found


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize(("name", "norm", "settings"), cases())
def test_contract(name: str, norm: str, settings: dict[str, Any]) -> None:
    model, images, labels = digits_net()
    images, labels = images[:24], labels[:24]
    attack = registry.load("attack", name)(**settings)
    assert isinstance(attack, Attack) and isinstance(attack.max_steps, int)
    eps = 8 / 255 if norm == "linf" else 0.5
    options: dict[str, Any] = {"eps": eps, "norm": norm, "batch_size": 24, **behind(name)}
    kept = images.copy()
    full = run_attack(model, attack, images, labels, ids(24), mode="full", seed=1, **options)
    search = run_attack(model, attack, images, labels, ids(24), mode="search", seed=1, **options)

    # In the ball and in the box, in float64; the attack moved something, and nothing of what it was given.
    for x in (full.best, full.last, search.best, search.last):
        delta = (x.astype(np.float64) - images).reshape(24, -1)
        distance = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
        assert (distance <= eps * (1 + 1e-6)).all() and x.min() >= 0 and x.max() <= 1 and x.dtype == np.float32
        if norm == "linf" and name != "torchattacks":
            assert (np.abs(delta) <= eps).all()  # exactly: no rounding outwards
    assert np.abs(full.last - images).max() > 0.5 * eps / images[0].size ** (norm == "l2")
    assert np.array_equal(images, kept) and not full.bound_violation.any()

    # Same decisions in both modes; the best image is fooled if and only if any was.
    if name != "torchattacks":  # foreign code knows its batch, which differs between the modes
        assert np.array_equal(full.success, search.success)
    assert np.array_equal(predict(model, shown(options, full.best))[0].argmax(1) != labels, full.success)
    assert np.array_equal(predict(model, shown(options, search.best))[0].argmax(1) != labels, search.success)
    assert np.array_equal(~full.first_success.mask, full.success)
    assert np.array_equal(full.clean_correct, predict(model, shown(options, images))[0].argmax(1) == labels)
    assert (search.n_forward <= full.n_forward).all()
    uses_gradient = registry.card("attack", name).constants.get("uses_gradient", True)
    assert (full.n_backward > 0).all() == uses_gradient

    # Deterministic by seed; eps 0 is the identity.
    again = run_attack(model, attack, images, labels, ids(24), mode="full", seed=1, **options)
    assert np.array_equal(again.best, full.best) and np.array_equal(again.last, full.last)
    if name != "fgsm" and not attack.minimal_norm:  # the nearest image need not depend on where the search began
        other = run_attack(model, attack, images, labels, ids(24), mode="full", seed=2, **options)
        assert not np.array_equal(other.last, full.last)
    still = run_attack(model, attack, images, labels, ids(24), mode="full", **(options | {"eps": 0.0}))
    assert np.array_equal(still.best, images) and np.array_equal(still.last, images)
    assert np.array_equal(still.success, ~still.clean_correct)


@pytest.mark.parametrize(("name", "norm", "settings"), [c for c in cases() if c.values[0] != "torchattacks"])
def test_decisions_do_not_depend_on_batch_or_order(name: str, norm: str, settings: dict[str, Any]) -> None:
    model, images, labels = digits_net()
    images, labels = images[:60], labels[:60]
    attack = registry.load("attack", name)(**settings)
    options: dict[str, Any] = {"eps": 0.06 if norm == "linf" else 0.8, "norm": norm, **behind(name)}
    one = run_attack(model, attack, images, labels, ids(60), batch_size=64, **options)
    order = np.random.default_rng(0).permutation(60)
    two = run_attack(model, attack, images[order], labels[order], [ids(60)[i] for i in order], batch_size=7, **options)
    assert np.array_equal(two.success, one.success[order])
    assert 0 < one.success.sum() < 60 or name == "sign_noise"


@pytest.mark.parametrize(
    "attack", [PGD(steps=6, restarts=2), APGD(steps=5, restarts=2), Square(queries=15)], ids=lambda a: type(a).__name__
)
def test_rows_of_different_age_share_a_batch_without_knowing_it(attack: Attack) -> None:
    """Bit for bit where rows cannot disturb each other: refilled batches mix ages, restarts and checkpoints."""
    model = Curved64()
    images = np.random.default_rng(0).uniform(0.3, 0.7, (40, 3, 8, 8)).astype(np.float32)
    labels = predict(model, images)[0].argmax(1)
    eps = 0.03 if isinstance(attack, Square) else 0.01
    one = run_attack(model, attack, images, labels, ids(40), eps=eps, norm="linf", batch_size=64)
    two = run_attack(model, attack, images, labels, ids(40), eps=eps, norm="linf", batch_size=5)
    assert np.array_equal(one.best, two.best) and np.array_equal(one.n_forward, two.n_forward)
    assert len(set(one.n_forward.tolist())) >= 3 and not one.success.all(), "too few ages to mix"


@pytest.mark.parametrize("attack", [PGD(steps=10, loss="margin"), PGD(steps=10), APGD(steps=10, loss="dlr")])
@pytest.mark.parametrize(("factor", "shift"), [(1.0, -100.0), (3.0, 0.0)])
def test_shift_and_scale_of_the_logits_change_no_decision(attack: Attack, factor: float, shift: float) -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.06, "norm": "linf"}
    plain = run_attack(model, attack, images, labels, ids(100), **options)
    other = run_attack(Scaled(model, factor, shift), attack, images, labels, ids(100), **options)
    assert (plain.success != other.success).sum() <= 1


# ---------------------------------------------------------------------------------------------------- closed forms

EXACT = [FGSM(), FGSM(loss="margin"), PGD(), PGD(loss="dlr"), APGD(steps=20), APGD(steps=20, loss="dlr")]
EXACT += [APGD(steps=20, loss="dlr_targeted", target=1), APGD(steps=20, loss="margin")]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", EXACT, ids=lambda a: f"{type(a).__name__}-{a.loss}")
def test_worst_case_of_a_linear_model(attack: Attack, norm: str) -> None:
    model, images, labels = linear_samples(20)
    w = model.w.numpy()
    critical = 4.0 / (np.abs(w).sum() if norm == "linf" else np.linalg.norm(w))
    hit = run_attack(model, attack, images, labels, ids(20), eps=1.02 * critical, norm=norm, mode="search")
    miss = run_attack(model, attack, images, labels, ids(20), eps=0.98 * critical, norm=norm, mode="full")
    assert hit.clean_correct.all() and hit.success.all()
    assert not miss.success.any()
    assert not hit.bound_violation.any() and not miss.bound_violation.any()
    # What is left of the margin is what is left of the way.
    assert np.allclose(miss.best_margin, -0.02 * 4.0, atol=0.004 * 4.0)


@pytest.mark.parametrize("attack", [SignNoise(draws=20), Square(queries=200)], ids=["sign_noise", "square"])
def test_no_attack_beats_the_worst_case_of_a_linear_model(attack: Attack) -> None:
    model, images, labels = linear_samples(20)
    critical = 4.0 / float(model.w.abs().sum())
    assert not run_attack(model, attack, images, labels, ids(20), eps=0.98 * critical, norm="linf").success.any()


def test_square_comes_near_the_worst_case_of_a_smooth_linear_model() -> None:
    model, images, labels = linear_samples(20)
    model.w = torch.ones_like(model.w) / 10  # one sign everywhere: squares can build the worst corner exactly
    model.bias = float(-model.w.sum() / 2)
    side = np.where(np.arange(20) % 2 == 0, 0.05, -0.05).astype(np.float32)
    x = np.full_like(images, 0.5) + side[:, None, None, None]
    labels = (np.arange(20) % 2).astype(np.int64)
    options: dict[str, Any] = {"norm": "linf", "mode": "search"}
    square = run_attack(model, Square(queries=500), x, labels, ids(20), eps=0.065, **options)
    noise = run_attack(model, SignNoise(draws=500), x, labels, ids(20), eps=0.065, **options)
    assert square.clean_correct.all() and square.success.mean() > 0.9 and noise.success.mean() < 0.1


# --------------------------------------------------------------------------------------------- independent libraries


@pytest.mark.parametrize("eps", [2 / 255, 0.1])
def test_fgsm_and_pgd_equal_torchattacks(eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    options: dict[str, Any] = {"eps": eps, "norm": "linf", "mode": "full", "batch_size": 100}
    theirs = torchattacks.FGSM(model, eps=eps)(x, y).numpy()
    assert np.abs(run_attack(model, FGSM(), images, labels, ids(100), **options).last - theirs).max() < 1e-6
    theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10, random_start=False)(x, y).numpy()
    ours = run_attack(model, PGD(steps=10, random_start=False), images, labels, ids(100), **options).last
    assert np.abs(ours - theirs).max() < 1e-6 and np.abs(ours - images).max() > 0.9 * eps
    theirs = torchattacks.PGDL2(model, eps=20 * eps, alpha=5 * eps, steps=10, random_start=False, eps_for_division=0)(
        x, y
    ).numpy()
    ours = run_attack(
        model,
        PGD(steps=10, random_start=False),
        images,
        labels,
        ids(100),
        **(options | {"eps": 20 * eps, "norm": "l2"}),
    ).last
    assert np.abs(ours - theirs).max() < 2e-5


def test_pgd_equals_foolbox() -> None:
    foolbox = pytest.importorskip("foolbox")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for norm, attack, eps in (
        ("linf", foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=10, random_start=False), 0.06),
        ("l2", foolbox.attacks.L2PGD(rel_stepsize=0.25, steps=10, random_start=False), 0.8),
    ):
        _, theirs, fooled = attack(wrapped, x, y, epsilons=eps)
        ours = run_attack(
            model, PGD(steps=10, random_start=False), images, labels, ids(100), eps=eps, norm=norm, mode="full",
            batch_size=100,
        )  # fmt: skip
        assert np.abs(ours.last - theirs.numpy()).max() < 2e-5
        wrong = predict(model, ours.last)[0].argmax(1) != labels
        assert np.array_equal(wrong, fooled.numpy()) and 0.1 < wrong.mean() < 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_apgd_agrees_with_torchattacks(loss: str, norm: str, eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        name = {"linf": "Linf", "l2": "L2"}[norm]
        theirs = torchattacks.APGD(model, norm=name, eps=eps, steps=100, loss=loss)(x, y)
    fooled = model(theirs).argmax(1).ne(y).numpy()
    ours = run_attack(model, APGD(steps=100, loss=loss), images, labels, ids(100), eps=eps, norm=norm)
    assert 20 < fooled.sum() < 90, "the budget leaves nothing to compare"
    assert abs(int(ours.success.sum()) - int(fooled.sum())) <= 1


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
@pytest.mark.parametrize(("loss", "close", "share"), [("ce", 1e-3, 1.0), ("dlr", 1e-2, 0.95)])
def test_apgd_follows_the_public_code_step_by_step(
    loss: str, close: float, share: float, norm: str, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same starts, the best loss of every row is the same: step sizes, momentum, checkpoints, returns.

    With dlr a few rows differ: the public code compares the first loss of the first window with 0 instead of with the
    loss of the start, which is always a rise for ce and not for dlr.
    """
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    best: list[torch.Tensor] = []

    class Noting(APGD):
        def step(self, rows: Any, *rest: Any) -> Any:
            new = super().step(rows, *rest)
            best.append(new["loss_best"])
            return new

    attack = Noting(steps=50, loss=loss)
    options: dict[str, Any] = {"eps": eps, "norm": norm, "mode": "full", "batch_size": 100, "seed": 4}
    ours = run_attack(model, attack, images, labels, ids(100), **options)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "rand", lambda shape: RowRandom.keyed(4, ids(100)).uniform(*shape[1:]))
        patch.setattr(torch, "randn", lambda shape: RowRandom.keyed(4, ids(100)).normal(*shape[1:]))
        oracle = torchattacks.APGD(model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=50, loss=loss)
        _, correct, theirs, _ = oracle.attack_single_run(torch.from_numpy(images), torch.from_numpy(labels))
    difference = (best[-1] - theirs).abs() / (theirs.abs() + 1e-3)
    assert (difference < close).float().mean() >= share
    assert np.array_equal(ours.success | ~ours.clean_correct, ~correct.bool().numpy() | ~ours.clean_correct)


def test_targeted_apgd_agrees_with_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    right = predict(model, images)[0].argmax(1) == labels
    images, labels = images[right][:60], labels[right][:60]
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        theirs = torchattacks.APGDT(model, eps=0.05, steps=20, n_classes=4)(x, y)  # its three best targets
    fooled = model(theirs).argmax(1).ne(y).numpy()
    ours = [
        run_attack(
            model, APGD(steps=20, loss="dlr_targeted", target=k), images, labels, ids(60), eps=0.05, norm="linf"
        ).success
        for k in (1, 2, 3)
    ]
    assert 5 < fooled.sum() < 55 and abs(int(np.any(ours, axis=0).sum()) - int(fooled.sum())) <= 1


def test_square_agrees_with_torchattacks() -> None:
    torchattacks = pytest.importorskip("torchattacks")
    model, images, labels = digits_net()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for rescale in (True, False):
        oracle = torchattacks.Square(model, n_queries=300, resc_schedule=rescale)
        ours = Square(queries=300, rescale=rescale).share(torch.arange(300)).tolist()
        assert ours == [oracle.p_selection(i) for i in range(300)]
    with torch.random.fork_rng(devices=[]):
        fooled = model(torchattacks.Square(model, eps=0.08, n_queries=300)(x, y)).argmax(1).ne(y).numpy()
    ours = run_attack(model, Square(queries=300), images, labels, ids(100), eps=0.08, norm="linf").success
    assert 20 < fooled.sum() < 90 and abs(int(ours.sum()) - int(fooled.sum())) <= 8


# ------------------------------------------------------------------------------------------------------- the parts


def test_apgd_checkpoints_are_those_of_the_paper() -> None:
    # p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06): section 3.2 of the paper.
    p = [0.0, 0.22]
    while p[-1] + 1e-9 < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    expected = [round(100 * q) for q in p[1:] if q <= 1 + 1e-9]
    table = APGD(steps=100).checkpoints()
    found = [i for i, window in enumerate(table) if window]
    assert found == expected and len(table) == 101
    assert [table[i] for i in found] == np.diff([0, *found]).tolist()


def test_apgd_restarts_can_only_help_and_cost_what_they_say() -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.05, "norm": "linf", "mode": "full"}
    once = run_attack(model, APGD(steps=6), images, labels, ids(100), **options)
    twice = run_attack(model, APGD(steps=6, restarts=2), images, labels, ids(100), **options)
    assert (twice.success >= once.success).all() and (twice.best_margin >= once.best_margin - 1e-4).all()
    assert (once.n_backward == 7).all() and (twice.n_backward == 14).all()
    once = run_attack(model, PGD(steps=6), images, labels, ids(100), **options)
    twice = run_attack(model, PGD(steps=6, restarts=3), images, labels, ids(100), **options)
    assert (twice.success >= once.success).all() and (twice.best_margin > once.best_margin + 1e-4).any()
    assert (once.n_backward == 6).all() and (twice.n_backward == 20).all()


def test_strength_has_the_known_order() -> None:
    model, images, labels = digits_net()
    options: dict[str, Any] = {"eps": 0.06, "norm": "linf", "mode": "full"}
    fooled = {
        name: int(run_attack(model, attack, images, labels, ids(100), **options).success.sum())
        for name, attack in {
            "noise": SignNoise(),
            "fgsm": FGSM(),
            "pgd": PGD(),
            "apgd": APGD(),
            "square": Square(queries=300),
        }.items()
    }
    assert fooled["noise"] < fooled["square"] < fooled["pgd"] and fooled["noise"] < fooled["fgsm"] <= fooled["pgd"]
    assert fooled["apgd"] >= fooled["pgd"]


def test_bounds_are_exact_in_float64() -> None:
    draw = np.random.default_rng(0)
    x0 = torch.from_numpy((draw.integers(0, 256, (50, 3, 8, 8)) / 255).astype(np.float32))
    eps = torch.from_numpy(draw.uniform(0, 0.3, 50))
    low, high = linf_bounds(x0, eps)
    reach = eps.view(-1, 1, 1, 1)
    assert ((x0.double() - low.double()) <= reach).all() and ((high.double() - x0.double()) <= reach).all()
    assert (low >= 0).all() and (high <= 1).all() and (low <= x0).all() and (x0 <= high).all()
    free = x0.double() - reach > 0
    assert (((x0.double() - low.double()) - reach).abs()[free] < 1e-7).all(), "tight to one float32 step"


def test_losses_by_hand() -> None:
    z = torch.tensor([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    assert losses.margin(z, y).tolist() == [-2.0, 4.0]
    assert losses.dlr(z, y).tolist() == [-2 / 4, 4 / 4]
    assert losses.dlr_targeted(z, y, torch.tensor([1, 0])).tolist() == [-2 / 4.5, 4 / 4.5]
    lse = np.log(np.exp([5.0, 3.0, 1.0, 0.0]).sum())
    assert np.allclose(losses.ce(z, y).numpy(), [lse - 5, lse - 1])
    for loss in losses.LOSSES.values():
        assert torch.allclose(loss(z - 100, y), loss(z, y))
    assert torch.allclose(losses.dlr(1000 * z, y), losses.dlr(z, y))


def test_losses_and_their_gradients_are_finite_on_saturated_and_tied_logits() -> None:
    rows = [[0.0, 0, 0, 0], [1e8, 1e8, 1e8, 0], [1e8, 0, 0, 0], [3e38, -3e37, 0, 0], [1e30, 1e30, 1e30, 1e30]]
    for y in (0, 3):
        labels = torch.full((len(rows),), y)
        for name, loss in losses.LOSSES.items():
            z = torch.tensor(rows, requires_grad=True)
            value = loss(z, labels)
            (gradient,) = torch.autograd.grad(value.sum(), z)
            assert not value.isnan().any() and not gradient.isnan().any(), (name, y)
        z = torch.tensor(rows, requires_grad=True)
        value = losses.dlr_targeted(z, labels, torch.full((len(rows),), 1))
        assert not value.isnan().any() and not torch.autograd.grad(value.sum(), z)[0].isnan().any()


def test_what_cannot_be_is_refused() -> None:
    two = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="needs 3 classes"):
        losses.dlr(two, torch.zeros(3, dtype=torch.long))
    for wrong in (
        lambda: PGD(loss="cw"),
        lambda: PGD(steps=0),
        lambda: PGD(restarts=2, random_start=False),
        lambda: APGD(loss="dlr_targeted"),
        lambda: APGD(target=1),
        lambda: APGD(loss="dlr_targeted", target=0),
        lambda: Square(p_init=0),
        lambda: SignNoise(draws=0),
        lambda: FGSM(loss="nll"),
    ):
        with pytest.raises(ValueError):
            wrong()
    model, images, labels = linear_samples(2)
    with pytest.raises(ValueError, match="rank 4"):
        attack = APGD(loss="dlr_targeted", target=4)
        run_attack(model, attack, images, labels, ids(2), eps=0.1, norm="linf")


# ---------------------------------------------------------------------------------------------------- the catalogue


def test_catalogue_entries_build_and_name_their_budgets() -> None:
    entries = yaml.safe_load((CATALOGUE / "attacks.yaml").read_text())["attacks"]
    assert len(entries) >= 10
    for name, entry in entries.items():
        if "members" in entry:
            assert set(entry["members"]) <= set(entries), name
            continue
        attack = registry.load("attack", entry["method"])(**entry.get("settings", {}))
        assert attack.max_steps >= 1, name
        card = registry.card("attack", entry["method"])
        assert all(setting in card.settings for setting in card.constants.get("bill", ())), name
    threats = yaml.safe_load((CATALOGUE / "threats.yaml").read_text())["threats"]
    for name, threat in threats.items():
        norm, amount = name.split("-")
        assert threat["norm"] == norm
        assert threat.get("eps_255") == int(amount) if norm == "linf" else threat["eps"] == int(amount) / 100
