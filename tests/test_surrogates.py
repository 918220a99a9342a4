"""Learned surrogates: they learn, they repeat themselves, and a damaged one is refused in words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_attacks_codec import Dice, pulled
from test_defenses import make, photographs

from windtunnel.backend import torch
from windtunnel.defenses.base import repeat
from windtunnel.surrogates.provide import BadSurrogate, load, provide
from windtunnel.surrogates.train import NoSurrogate, Recipe, fidelity, perturbed, train_surrogate
from windtunnel.surrogates.unet import Shape, UNet

SHORT = Recipe(steps=150, width=16, deep=24, batch=16)


@cache
def trained(family: str, value: int | None = None, rounds: int = 1) -> tuple[Any, dict[str, Any]]:
    return train_surrogate(make(family, value), rounds, photographs(120), recipe=SHORT)


def network_of(state: Any) -> UNet:
    network = UNet(Shape(width=SHORT.width, deep=SHORT.deep))
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def test_a_linear_filter_is_learned_and_beats_what_knows_nothing() -> None:
    state, metrics = trained("gaussian", 10)
    assert metrics["n"] == 12 and metrics["n_train"] == 108
    for prefix in ("", "perturbed_"):
        assert metrics[prefix + "error_255"] < 0.5 * metrics[prefix + "identity_error_255"]
    # the filter's own gradient is known in closed form: the surrogate's points the same way
    x = torch.tensor(photographs(6))
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    exact = pulled(make("gaussian", 10).backward_rules()["own"], x, weights)
    learned = pulled(network_of(state), x, weights)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), learned.flatten(1))
    straight = torch.nn.functional.cosine_similarity(exact.flatten(1), weights.flatten(1))
    assert (cosine > 0.85).all() and (cosine > straight + 0.2).all()


def test_metrics_are_those_of_the_stored_network_on_held_out_images() -> None:
    state, metrics = trained("gaussian", 10)
    unseen, network = photographs(120)[108:], network_of(state)
    real = repeat(make("gaussian", 10), unseen, 1).images
    with torch.no_grad():
        found = 255 * np.abs(network(torch.tensor(unseen)).numpy() - real).mean()
    assert metrics["error_255"] == pytest.approx(found, rel=1e-5)
    assert metrics["identity_error_255"] == pytest.approx(255 * np.abs(unseen - real).mean(), rel=1e-5)
    assert metrics["weights"] == sum(p.numel() for p in network.parameters())
    assert fidelity(network, make("gaussian", 10), 1, unseen)["error_255"] == pytest.approx(found, rel=1e-5)


def test_rounds_are_learned_as_one() -> None:
    state, metrics = trained("gaussian", 6, rounds=4)
    alone = fidelity(network_of(state), make("gaussian", 6), 1, photographs(120)[108:])
    assert metrics["error_255"] < 0.6 * alone["error_255"], "nearer to four rounds than to one"
    assert metrics["error_255"] < 0.5 * metrics["identity_error_255"]


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_state_alone() -> None:
    recipe = Recipe(steps=3, width=8, deep=8)
    torch.manual_seed(11)
    np.random.seed(11)
    before, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    images = photographs(24)
    first, one = train_surrogate(make("bits"), 1, images, seed=1, recipe=recipe)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], numbers)
    torch.manual_seed(12)
    again, two = train_surrogate(make("bits"), 1, images, seed=1, recipe=recipe)
    other, _ = train_surrogate(make("bits"), 1, images, seed=2, recipe=recipe)
    assert one == two and all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["fine.weight"], other["fine.weight"])


def test_the_untrained_network_is_the_identity_for_any_size() -> None:
    for shape in ((2, 3, 32, 32), (1, 3, 13, 22), (1, 3, 4, 4), (1, 3, 1, 5), (1, 3, 40, 24)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        assert torch.equal(UNet()(x), x)
    assert 50_000 < sum(p.numel() for p in UNet().parameters()) < 150_000


def test_the_linear_part_is_solved_in_closed_form() -> None:
    x, truth, network = torch.tensor(photographs(24)), UNet(), UNet()
    truth.filter.weight.data = 0.1 * torch.randn(3, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.solve_filter(x, truth(x))
        assert (network(x) - truth(x)).abs().max() < 0.02 * (x - truth(x)).abs().max()
    # for a defense that is no filter, no other filter is nearer: every slope of the squared error is nil
    real = torch.tensor(repeat(make("median"), photographs(24), 1).images)
    network.solve_filter(x, real)
    error = (network(x) - real).square().mean()
    (slope,) = torch.autograd.grad(error, network.filter.weight)
    (at_zero,) = torch.autograd.grad((truth(x) - real).square().mean(), truth.filter.weight)
    assert slope.abs().max() < 1e-3 * at_zero.abs().max()
    assert error < (x - real).square().mean()


def test_rows_are_apart_and_any_size_has_a_gradient() -> None:
    network = network_of(trained("gaussian", 10)[0])
    x = torch.tensor(photographs(8))
    torch.testing.assert_close(network(x)[3:4], network(x[3:4]), rtol=0, atol=1e-6)
    odd = torch.rand((2, 3, 33, 18), generator=torch.Generator().manual_seed(0))
    found = pulled(network, odd)
    assert torch.isfinite(found).all() and (found.flatten(1).abs().sum(1) > 0).all()


def test_perturbed_images_stay_in_the_ball_and_the_box() -> None:
    x = photographs(40)
    moved = perturbed(x, 0.1, np.random.default_rng(0))
    distance = np.abs(moved - x).reshape(40, -1).max(1)
    assert moved.min() >= 0 and moved.max() <= 1 and moved.dtype == np.float32
    assert distance.max() <= 0.1 + 1e-6 and distance.min() < 0.03 and distance.max() > 0.07


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(NoSurrogate, match="Dice is random"):
        train_surrogate(Dice(), 1, photographs(24))
    with pytest.raises(ValueError, match="at least 20"):
        train_surrogate(make("bits"), 1, photographs(8))
    with pytest.raises(ValueError, match="rounds"):
        train_surrogate(make("bits"), 0, photographs(24))
    for wrong in ({"steps": 0}, {"largest_eps": 0.0}, {"learning_rate": 0.0}, {"difference": -1.0}):
        with pytest.raises(ValueError):
            Recipe(**wrong)


def test_a_folder_is_written_read_and_repeated_byte_for_byte(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, width=8, deep=8)
    who = {"defense": {"name": "bits-3"}, "images": "abc"}
    card = provide(make("bits"), 2, photographs(24), tmp_path / "a", identity=who, recipe=recipe)
    provide(make("bits"), 2, photographs(24), tmp_path / "b", identity=who, recipe=recipe)
    for name in ("card.json", "weights.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "card.json").read_text()) == card
    assert card["identity"] == who and card["rounds"] == 2 and card["recipe"]["steps"] == 3

    rule = load(tmp_path / "a")
    state, _ = train_surrogate(make("bits"), 2, photographs(24), recipe=recipe)
    network = UNet(Shape(width=8, deep=8))
    network.load_state_dict(state)
    x = torch.tensor(photographs(3))
    assert torch.equal(rule(x), network(x)) and rule(x.double()).dtype == torch.float64
    leaf = x.clone().requires_grad_()
    rule(leaf).sum().backward()
    assert leaf.grad is not None and not any(p.requires_grad or p.grad is not None for p in rule._network.parameters())


def test_a_missing_or_damaged_surrogate_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadSurrogate, match="no surrogate in"):
        load(tmp_path / "nowhere")
    folder = tmp_path / "s"
    provide(make("bits"), 1, photographs(24), folder, identity={}, recipe=Recipe(steps=1, width=8, deep=8))
    card = json.loads((folder / "card.json").read_text())
    weights = (folder / "weights.safetensors").read_bytes()

    (folder / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(BadSurrogate, match="not the file its card describes.*train the surrogate again"):
        load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(BadSurrogate, match="no such file"):
        load(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "card.json").write_text("{")
    with pytest.raises(BadSurrogate, match="not JSON"):
        load(folder)
    (folder / "card.json").write_text(json.dumps(card | {"recipe": {"width": 9, "deep": 8}}))
    with pytest.raises(BadSurrogate, match="does not describe"):
        load(folder)
    (folder / "card.json").write_text(json.dumps({"kind": "surrogate"}))
    with pytest.raises(BadSurrogate, match="does not describe"):
        load(folder)
