"""A property of attacks that no column of a table can show: adding a constant to all logits changes no decision.

A classifier f, f - 100 and (where the loss promises it) 3 f decide alike on every image, so an attack must break the
same samples: at least 99.8 % of 500 decisions are equal, which leaves one to float rounding. An attack that reads
logits as if 0 meant something (a ``max`` against 0, a product of logits) fails here and nowhere else.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from attack_samples import Scaled, digits_net

from windtunnel import registry
from windtunnel.backend import torch
from windtunnel.engine import run_attack

N = 500
LEAST_EQUAL = 0.998
# Settings that multiply the cost, cut down alike for every attack, known or new; what is not named keeps its default.
CAPS = {"steps": 4, "restarts": 1, "targets": 2, "candidates": 3, "searches": 2, "inner_steps": 2, "final_search": 1}
OWN: dict[str, dict[str, Any]] = {"cw": {"steps": 8, "initial_c": 1.0, "learning_rate": 0.05}}
SCALE_FREE_LOSSES = ("margin", "dlr")
SCALE_FREE_ATTACKS = ("deepfool", "fab")  # no loss of their own to choose; only ratios of logits to gradients are used
LEFT_OUT = {
    "torchattacks": "foreign code: audited class by class elsewhere, and several classes are refused for just this",
    "codec_pgd": "never asks for a logit",
}


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """500 digits as ``digits_net`` sees them (it was trained on some: the property does not mind)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.repeat(np.repeat(data.images, 2, axis=1), 2, axis=2)[:, None].repeat(3, axis=1)[-N:]
    return (np.rint(pixels * (255 / 16)) / 255).astype(np.float32), data.target[-N:].astype(np.int64)


def cases() -> list[Any]:
    """(attack, loss or None, factor, shift) for every registered attack that follows a gradient."""
    found = []
    for name in registry.names("attack"):
        card = registry.card("attack", name)
        if name in LEFT_OUT or not card.constants.get("uses_gradient", True):
            continue
        losses = ("ce", "margin", "dlr") if name in ("pgd", "apgd") else ("margin",)
        for loss in losses if "loss" in card.settings else (None,):
            found.append(pytest.param(name, loss, 1.0, -100.0, id=f"{name}-{loss}-shift"))
            if loss in SCALE_FREE_LOSSES or name in SCALE_FREE_ATTACKS:
                found.append(pytest.param(name, loss, 3.0, 0.0, id=f"{name}-{loss}-scale"))
    return found


@cache
def broken(name: str, loss: str | None, factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """[500] who is fooled when the logits are ``factor f + shift``."""
    card = registry.card("attack", name)
    settings = {
        k: min(cap, card.settings[k] or cap) for k, cap in CAPS.items() if k in card.settings and k != "targets"
    }
    if card.settings.get("targets"):
        settings["targets"] = CAPS["targets"]
    settings |= OWN.get(name, {}) | ({} if loss is None else {"loss": loss})
    norm = card.constants.get("norms", ("linf",))[0]
    model: torch.nn.Module = digits_net()[0]
    if (factor, shift) != (1.0, 0.0):
        model = Scaled(model, factor, shift)
    pictures, labels = images()
    result = run_attack(
        model, registry.load("attack", name)(**settings), pictures, labels, [f"digit-{i}" for i in range(N)],
        eps=0.1 if norm == "linf" else 1.5, norm=norm, mode="search", batch_size=N,
    )  # fmt: skip
    return result.success


@pytest.mark.parametrize(("name", "loss", "factor", "shift"), cases())
def test_decisions_do_not_depend_on_the_level_of_the_logits(
    name: str, loss: str | None, factor: float, shift: float
) -> None:
    plain = broken(name, loss)
    assert 0.15 < plain.mean() < 0.95, "nothing to compare: the attack breaks (nearly) nothing or everything"
    assert (plain == broken(name, loss, factor, shift)).mean() >= LEAST_EQUAL


def test_the_property_can_fail() -> None:
    """A loss that compares the true logit with 0 looks honest on f and breaks other samples on f - 100."""
    from windtunnel.attacks import losses
    from windtunnel.attacks.pgd import PGD

    def hinged(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return losses.margin(logits, y) * (logits.gather(1, y[:, None])[:, 0] > -50).float()

    pictures, labels = images()
    options: dict[str, Any] = {"eps": 0.1, "norm": "linf", "batch_size": N}
    known = losses.LOSSES
    known["hinged"] = hinged
    try:
        attack = PGD(steps=6, loss="hinged")
        names = [f"digit-{i}" for i in range(N)]
        one = run_attack(digits_net()[0], attack, pictures, labels, names, **options).success
        two = run_attack(Scaled(digits_net()[0], shift=-100.0), attack, pictures, labels, names, **options).success
    finally:
        del known["hinged"]
        losses.loss_named.cache_clear()
    assert (one == two).mean() < LEAST_EQUAL
