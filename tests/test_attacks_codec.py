"""The attack on the codec, the noise control and compositions, on real defenses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attack_samples import digits_net
from test_defenses import make, photographs

from windtunnel.attacks.codec_pgd import CodecPGD
from windtunnel.attacks.pgd import PGD
from windtunnel.attacks.sign_noise import SignNoise
from windtunnel.backend import torch
from windtunnel.defenses import rules
from windtunnel.defenses._chain import Chain
from windtunnel.defenses.base import Defense, Purified, RandomDefense, repeat
from windtunnel.engine import run_attack


def error_of(defense: Defense, x: np.ndarray, rounds: int = 1) -> np.ndarray:
    return np.square(repeat(defense, x, rounds).images - x).reshape(len(x), -1).mean(1)


def bright() -> np.ndarray:
    """Photographs without their blackest values: 0 is a place from which ``Halved`` has nowhere to go."""
    return np.clip(photographs(12), np.float32(0.1), 1)


class Ten(torch.nn.Module):
    """A model that no codec attack asks before the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


def attacked(attack: Any, defense: Defense, *, rule: str, norm: str = "linf", eps: float = 8 / 255, **options: Any):
    x = bright()
    labels = x.reshape(12, -1)[:, :10].argmax(1)
    ids = [f"s{i}" for i in range(12)]
    return run_attack(
        Ten().eval(), attack, x, labels, ids, eps=eps, norm=norm, mode="full", defense=defense, rule=rule, **options
    )


# ------------------------------------------------------------------------------------------------- the codec's error


@pytest.mark.parametrize(("norm", "eps"), [("linf", 8 / 255), ("l2", 1.0)])
@pytest.mark.parametrize(("family", "rule"), [("jpeg", "surrogate-1"), ("median", "own")])
def test_the_error_rises_clearly_above_that_of_noise(family: str, rule: str, norm: str, eps: float) -> None:
    defense = make(family)
    noise = error_of(defense, attacked(SignNoise(draws=1), defense, rule="identity", norm=norm, eps=eps).last)
    result = attacked(CodecPGD(), defense, rule=rule, norm=norm, eps=eps)
    driven = error_of(defense, result.last)
    assert not result.bound_violation.any()
    assert (driven > noise).all() and driven.mean() > 1.15 * noise.mean()


class Halved(Defense):
    """g(x) = x / 2, so that e(x) = mean x^2 / 4 grows with every value: the worst image is the ball's upper corner."""

    def purify(self, images: np.ndarray) -> Purified:
        return Purified(images / np.float32(2))

    def backward_rules(self, rounds: int = 1) -> dict[str, Any]:
        return {"own": lambda x: x / 2**rounds, "identity": rules.identity}


def test_the_closed_form_of_a_linear_defense() -> None:
    x0 = bright()
    corner = np.minimum(x0 + np.float32(8 / 255), 1)
    found = attacked(CodecPGD(steps=10), Halved(), rule="own")
    np.testing.assert_allclose(found.last, corner, atol=1e-6)
    assert not found.zero_gradient.any()
    # l2: the maximiser of |x0 + d|^2 lies along x0 (inside the box)
    eps = 0.3
    along = attacked(CodecPGD(steps=30), Halved(), rule="own", norm="l2", eps=eps)
    flat = x0.reshape(12, -1).astype(np.float64)
    length = np.linalg.norm(flat, axis=1)
    inside = (flat * (1 + eps / length[:, None])).max(1) <= 1
    assert inside.sum() >= 3
    wanted = (length + eps) ** 2 / flat.shape[1] / 4
    np.testing.assert_allclose(error_of(Halved(), along.last)[inside], wanted[inside], rtol=1e-4)


def test_the_image_kept_is_the_worst_of_all_that_were_asked_about() -> None:
    seen: list[torch.Tensor] = []

    class Noting(CodecPGD):
        def step(self, rows: Any, norm: str, generators: Any, query: Any) -> Any:
            new = super().step(rows, norm, generators, query)
            seen.append(query.defense_error(rows["iterate"])[0])
            return new

    jpeg = make("jpeg")
    result = attacked(Noting(steps=4, restarts=2), jpeg, rule="surrogate-1")
    assert len(seen) == 10
    np.testing.assert_allclose(error_of(jpeg, result.last), torch.stack(seen).amax(0).numpy(), rtol=1e-5)
    assert len({float(e[0]) for e in seen}) == 10, "every start and step is a place of its own"
    once = attacked(CodecPGD(steps=4), jpeg, rule="surrogate-1")
    assert (error_of(jpeg, result.last) >= error_of(jpeg, once.last)).all()
    assert (once.n_backward == 5).all()


def test_rows_do_not_know_their_neighbours() -> None:
    whole = attacked(CodecPGD(steps=3, restarts=2), make("jpeg"), rule="surrogate-1", batch_size=12)
    parts = attacked(CodecPGD(steps=3, restarts=2), make("jpeg"), rule="surrogate-1", batch_size=5)
    assert (np.abs(whole.last - parts.last) < 1e-6).mean() > 0.995  # float rounding may turn a sign here and there


def test_where_there_is_nothing_to_attack_a_sentence_says_so() -> None:
    model, images, labels = digits_net()
    with pytest.raises(ValueError, match="no defense"):
        run_attack(model, CodecPGD(steps=1), images[:3], labels[:3], ["a", "b", "c"], eps=0.1, norm="linf")
    straight = attacked(CodecPGD(steps=2), make("jpeg"), rule="identity")
    assert straight.zero_gradient.all(), "under the identity the error has no gradient, and the rows say so"
    for wrong in ({"steps": 0}, {"restarts": 0}, {"step_size": 0.0}, {"restarts": 2, "random_start": False}):
        with pytest.raises(ValueError):
            CodecPGD(**wrong)


# --------------------------------------------------------------------------------------------------------- the control


def pulled(rule: Any, x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    out = rule(leaf)
    return torch.autograd.grad(out, leaf, torch.ones_like(out) if weights is None else weights)[0]


def test_noise_is_random_signs_that_ignore_the_gradient() -> None:
    x = torch.tensor(photographs(12))
    assert torch.equal(rules.noise(x), x)
    signs = pulled(rules.noise, x)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    for weights in (torch.zeros_like(x), torch.full_like(x, float("nan")), torch.randn(x.shape)):
        assert torch.equal(pulled(rules.noise, x, weights), signs)
    n = signs[0].numel()
    flat = signs.flatten(1).double()
    assert (flat.mean(1).abs() < 4 / n**0.5).all(), "no row leans"
    correlation = flat @ flat.T / n - torch.eye(12)
    assert correlation.abs().max() < 4.5 / n**0.5, "rows are as if drawn apart"
    for lag in (1, 2, 32, 1024):
        assert ((flat[:, lag:] * flat[:, :-lag]).mean(1).abs() < 4.5 / (n - lag) ** 0.5).all(), "no pattern in a row"
    assert pulled(rules.noise, x.double()).dtype == torch.float64


def test_noise_belongs_to_the_rows_own_content() -> None:
    x = torch.tensor(photographs(12))
    signs = pulled(rules.noise, x)
    order = torch.tensor([7, 3, 3, 11, 0])
    assert torch.equal(pulled(rules.noise, x[order]), signs[order])
    assert torch.equal(pulled(rules.noise, x[4:5]), signs[4:5])
    for place in ((0, 0, 0), (2, 31, 31), (1, 17, 4)):
        moved = x.clone()
        moved[(5, *place)] = torch.nextafter(moved[(5, *place)], torch.tensor(2.0))
        other = pulled(rules.noise, moved)
        assert abs(float((other[5] * signs[5]).mean())) < 0.1, "the smallest change of one value draws all anew"
        assert torch.equal(other[4], signs[4])


def test_every_defense_can_be_attacked_through_the_control_and_none_lists_it() -> None:
    for family in ("jpeg", "webp", "median"):
        assert "noise" not in make(family).rules and "noise" not in rules.generic_rules()
    assert rules.with_generic(("noise",))["noise"] is rules.noise
    assert list(rules.control_rules()) == ["noise"]


def test_the_control_is_as_weak_as_noise() -> None:
    model, images, labels = digits_net()
    ids = [f"s{i}" for i in range(60)]
    options: dict[str, Any] = {"eps": 0.06, "norm": "linf", "defense": make("bits", 4)}
    knows = run_attack(model, PGD(steps=10), images[:60], labels[:60], ids, rule="own", **options)
    guesses = run_attack(model, PGD(steps=10), images[:60], labels[:60], ids, rule=rules.noise, **options)
    assert guesses.success.mean() < 0.5 * knows.success.mean()
    again = run_attack(model, PGD(steps=10), images[:60], labels[:60], ids, rule=rules.noise, batch_size=7, **options)
    assert np.array_equal(again.best, guesses.best)


# -------------------------------------------------------------------------------------------------------- compositions


def test_a_chain_is_its_stages_in_order() -> None:
    x = photographs(6)
    jpeg, median, gaussian = make("jpeg"), make("median"), make("gaussian", 8)
    chain = Chain(stages=(jpeg, median))
    once = chain.purify(x)
    np.testing.assert_array_equal(once.images, median.purify(jpeg.purify(x).images).images)
    np.testing.assert_array_equal(once.file_bits, jpeg.purify(x).file_bits)
    assert not np.array_equal(once.images, Chain(stages=(median, jpeg)).purify(x).images)
    two = Chain(stages=(make("webp"), gaussian, jpeg)).purify(x)
    stored = jpeg.purify(gaussian.purify(make("webp").purify(x).images).images)
    np.testing.assert_array_equal(two.payload_bits, stored.payload_bits)
    assert Chain(stages=(median, gaussian)).purify(x).file_bits is None
    np.testing.assert_array_equal(repeat(chain, x, 2).images, chain.purify(once.images).images)


def test_a_chains_rules_name_one_rule_per_stage() -> None:
    chain = Chain(stages=(make("jpeg"), make("median")))
    found = chain.backward_rules(2)
    assert tuple(found) == chain.rules and len(found) == 12
    assert chain.rules[0] == "surrogate-n+own" and "surrogate-1+blur" in chain.rules
    assert set(chain.generic_rules) == {f"{a}+{b}" for a in ("identity", "blur") for b in ("identity", "blur")}
    assert chain.libraries == ("kornia", "numpy", "pillow")
    x = torch.tensor(photographs(4))
    first, second = (stage.backward_rules(2) for stage in chain.stages)
    assert torch.equal(found["surrogate-1+blur"](x), second["blur"](first["surrogate-1"](x)))
    assert torch.equal(pulled(found["identity+identity"], x), torch.ones_like(x))


def test_a_composed_gradient_is_the_chain_rule_in_the_right_order() -> None:
    gaussian, bits = make("gaussian", 8), make("bits", 3)
    exact = Chain(stages=(gaussian, bits)).backward_rules()["own+own"]
    x, weights = torch.tensor(photographs(3)), torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    blurred = gaussian.backward_rules()["own"](x)
    back = pulled(bits.backward_rules()["own"], blurred, weights)
    torch.testing.assert_close(pulled(exact, x, weights), pulled(gaussian.backward_rules()["own"], x, back))
    # two linear filters: the gradient of the composition is that of one filter of the real composition
    linear = Chain(stages=(gaussian, make("gaussian", 12)))
    rule = linear.backward_rules()["own+own"]
    np.testing.assert_allclose(rule(x).numpy(), linear.purify(photographs(3)).images, atol=1e-6)


def test_attacking_a_chain_goes_through_it() -> None:
    model, images, labels = digits_net()
    chain = Chain(stages=(make("bits", 4), make("median")))
    ids = [f"s{i}" for i in range(40)]
    options: dict[str, Any] = {"eps": 0.08, "norm": "linf", "defense": chain, "rule": "own+own"}
    through = run_attack(model, PGD(steps=8), images[:40], labels[:40], ids, **options)
    noise = run_attack(model, PGD(steps=8), images[:40], labels[:40], ids, **(options | {"rule": rules.noise}))
    assert through.success.sum() > noise.success.sum() + 5
    with pytest.raises(ValueError, match="unknown backward rule 'own'"):
        run_attack(model, PGD(steps=8), images[:4], labels[:4], ids[:4], **(options | {"rule": "own"}))


class Dice(RandomDefense):
    """Random by name; nothing here throws."""

    def draw(self, generators: Any, shape: Any) -> Any:
        return {}

    def purify_drawn(self, images: np.ndarray, draw: Any) -> Purified:
        return Purified(images)


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one stage"):
        Chain(stages=())
    with pytest.raises(ValueError, match="at least one stage"):
        rules.compose_rules([])
    with pytest.raises(ValueError, match="Dice is random"):
        Chain(stages=(make("jpeg"), Dice()))
