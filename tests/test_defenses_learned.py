"""One contract for every learned defense whose network ships: what any purifier must do, on the real weights."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_defenses import photographs

from windtunnel import RESOURCES, registry
from windtunnel.backend import torch
from windtunnel.catalogue import Catalogue, DefenseChoice
from windtunnel.defenses.base import LearnedDefense, RandomDefense, repeat
from windtunnel.networks.provide import load
from windtunnel.plan import Plan

CATALOGUE = Catalogue()
SHIPPED = sorted(p.parent.name for p in (RESOURCES / "networks").glob("*/card.json"))


@cache
def carried(network: str) -> tuple[str, ...]:
    """The defenses that carry a shipped network, in mid-range where the integer is not the network's."""
    wanted, found = CATALOGUE.network(network), []
    for family, entry in CATALOGUE.sections["defenses"].items():
        if entry.network != wanted.family:
            continue
        if entry.argument is None:
            found.append(family)
        elif wanted.entry.argument == entry.argument:
            found.append(f"{family}-{network.removeprefix(wanted.family + '-')}")
        else:
            steps = (entry.maximum - entry.minimum) // entry.step
            found.append(f"{family}-{entry.minimum + steps // 2 * entry.step}")
    assert found, f"the network '{network}' ships, but no defense carries it"
    return tuple(found)


DETERMINISTIC = [d for n in SHIPPED for d in carried(n) if not CATALOGUE.defense(d).is_random]


@cache
def made(name: str) -> LearnedDefense:
    choice = CATALOGUE.defense(name)
    wanted = CATALOGUE.network(str(choice.network))
    module = load(
        registry.load("network", wanted.entry.method)(**wanted.settings), RESOURCES / "networks" / wanted.name
    )
    return registry.load("defense", choice.entry.method)(**choice.settings).carrying(module)


def choice_of(name: str) -> DefenseChoice:
    return CATALOGUE.defense(name)


def test_every_shipped_network_is_of_its_recipe_and_small() -> None:
    plan = Plan.of({"blocks": [{"images": "photodigits.test", "models": "digits-cnn"}]})
    for name in SHIPPED:
        card = json.loads(Path(RESOURCES / "networks" / name / "card.json").read_text())
        assert card["recipe_digest"] == plan.network_digest(name), f"python -m windtunnel.networks.ship {name}"
        assert card["metrics"] and card["weights"]["bytes"] < 3_000_000, name


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_shape_range_and_the_same_answer_every_time_whoever_shares_the_batch(name: str) -> None:
    defense, images = made(name), photographs(19)
    before = images.copy()
    found = defense.purify(images)
    assert not isinstance(defense, RandomDefense)
    assert found.images.shape == images.shape and found.images.dtype == np.float32
    assert np.isfinite(found.images).all() and found.images.min() >= 0 and found.images.max() <= 1
    assert np.array_equal(images, before), "the input was written to"
    assert np.array_equal(found.images, defense.purify(images).images)
    order = np.random.default_rng(0).permutation(19)
    for start in (0, 7, 18):
        rows = order[start : start + 5]
        part = defense.purify(images[rows])
        assert np.array_equal(part.images, found.images[rows])
        if found.payload_bits is not None:
            assert np.array_equal(part.payload_bits, found.payload_bits[rows])
    assert np.array_equal(repeat(defense, images, 2).images, defense.purify(found.images).images)
    assert defense.purify(images[:0]).images.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_backward_rules_are_at_least_three_finite_and_none_is_dead(name: str) -> None:
    defense, x = made(name), torch.tensor(photographs(4))
    for rounds in (1, 2):
        rules = defense.backward_rules(rounds)
        assert tuple(rules) == defense.rules and len(choice_of(name).rules) >= 3
        assert set(rules) - set(defense.generic_rules), "only rules that know nothing of this defense"
        for rule in rules.values():
            leaf = x.clone().requires_grad_()
            out = rule(leaf)
            assert out.shape == x.shape
            (gradient,) = torch.autograd.grad(
                (out * torch.linspace(-1, 1, out[0].numel()).view(out[0].shape)).sum(), leaf
            )
            assert gradient.isfinite().all() and (gradient.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_an_own_rule_follows_the_real_thing_better_than_the_identity(name: str) -> None:
    """The stand-in's value is near the real answer: nearer than the image that went in."""
    defense, images = made(name), photographs(8)
    real = defense.purify(images).images
    own = next(rule for n, rule in defense.backward_rules(1).items() if n not in defense.generic_rules)
    with torch.no_grad():
        followed = own(torch.tensor(images)).clamp(0, 1).numpy()
    assert np.abs(followed - real).mean() <= np.abs(images - real).mean()
