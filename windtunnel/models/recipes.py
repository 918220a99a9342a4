"""Training recipes: typed, every number stated, read from a catalogue entry's ``recipe``. No torch.

A recipe has three parts, ``network`` (the architecture's settings), ``normalisation`` (``mean`` and ``std`` per
channel) and ``training``. The tuned values live in ``windtunnel/catalogue/models.yaml``; there are no defaults here,
so that a number which decides weights is always written down where the digest sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

OPTIMISERS = ("sgd", "adamw")


class BadRecipe(ValueError):
    """A recipe with missing, unknown or impossible values; the message lists all of them."""


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """Single-step adversarial training: Fast is Better than Free (Wong et al., https://arxiv.org/abs/2001.03994).

    Each batch is replaced by x + d, d started uniformly in the ball of ``eps_255`` / 255 (linf), moved one step of
    ``step_255`` / 255 along the sign of the loss's gradient, projected on ball and box. Both grow linearly from 0 over
    the first ``ramp_epochs``: from random weights nothing is learned at the full budget. The paper's step is 1.25 eps;
    it is known to overfit catastrophically at larger budgets, which is why cards state PGD-20 beside clean accuracy.
    """

    eps_255: float
    step_255: float
    ramp_epochs: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights are found.

    ``epochs`` over fresh composites; ``batch`` images; ``optimiser`` ``sgd`` (Nesterov, with ``momentum``) or
    ``adamw`` (``momentum`` is beta_1); ``learning_rate`` is the peak, reached linearly over the first
    ``warmup_epochs`` and lowered to 0 by half a cosine; ``weight_decay`` acts on tensors of two dimensions or more;
    ``shear_64`` the largest slope of the augmentation, in 64ths (see ``windtunnel.models.augment``); ``adversarial``
    or None.
    """

    epochs: int
    batch: int
    optimiser: str
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup_epochs: float
    shear_64: int
    adversarial: AdversarialTraining | None

    def problems(self) -> list[str]:
        """What is impossible about the values, in words."""
        found = []
        if self.optimiser not in OPTIMISERS:
            found.append(f"training.optimiser is '{self.optimiser}', must be one of {', '.join(OPTIMISERS)}")
        budget = self.adversarial
        if budget is not None and not (budget.eps_255 > 0 and budget.step_255 > 0 and budget.ramp_epochs >= 0):
            found.append(f"training.adversarial has a budget or step of 0 or less, or a negative ramp: {budget}")
        for name in ("epochs", "batch", "learning_rate"):
            if getattr(self, name) <= 0:
                found.append(f"training.{name} is {getattr(self, name)}, must be positive")
        if not 0 <= self.warmup_epochs < self.epochs:
            found.append(f"training.warmup_epochs is {self.warmup_epochs}, must lie in [0, epochs)")
        return found


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The three parts of a recipe."""

    network: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    training: Training


def read_recipe(settings: Mapping[str, Any]) -> Recipe:
    """The typed form of a catalogue recipe; raises ``BadRecipe`` with every problem at once."""
    problems = _key_problems("recipe", settings, {"network", "normalisation", "training"})
    problems += _key_problems("normalisation", settings.get("normalisation") or {}, {"mean", "std"})
    training = dict(settings.get("training") or {})
    problems += _key_problems("training", training, {f.name for f in fields(Training)})
    adversarial = training.get("adversarial")
    if adversarial is not None:
        wanted = {f.name for f in fields(AdversarialTraining)}
        problems += _key_problems("training.adversarial", adversarial, wanted)
    if problems:
        raise BadRecipe("; ".join(problems))
    training["adversarial"] = None if adversarial is None else AdversarialTraining(**adversarial)
    typed = Training(**training)
    if typed.problems():
        raise BadRecipe("; ".join(typed.problems()))
    normalisation = settings["normalisation"]
    return Recipe(
        network=dict(settings["network"]),
        mean=tuple(normalisation["mean"]),
        std=tuple(normalisation["std"]),
        training=typed,
    )


def _key_problems(where: str, found: Mapping[str, Any], wanted: set[str]) -> list[str]:
    missing, unknown = sorted(wanted - set(found)), sorted(set(found) - wanted)
    problems = [f"{where}.{key} is missing" for key in missing]
    return problems + [f"{where}.{key} is unknown (known: {', '.join(sorted(wanted))})" for key in unknown]
