"""Training recipes: typed, every number stated, read from a catalogue entry's ``recipe``. No torch.

A recipe has three parts, ``network`` (the architecture's settings), ``normalisation`` (``mean`` and ``std`` per
channel) and ``training``. The tuned values live in ``windtunnel/catalogue/models.yaml``; there are no default numbers
here, so that a number which decides weights is always written down where the digest sees it. Keys that came later
(``noise``, ``consistency``, ``view``, ``fusion``) may be left out: what is left out is not done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
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
class ConsistencyTraining:
    """Two noisy views of every image that are to agree, see ``windtunnel.models.consistency``: ``weight`` of the
    divergence, ``eta`` of the entropy."""

    weight: float
    eta: float


@dataclass(frozen=True, kw_only=True)
class FusionTraining:
    """Architecture ``fusion``: how the two experts are trained before the head, see ``windtunnel.models.fusion``.

    ``photographs``: classes of the background expert; ``foreground_penalty``: alpha of alpha * |theta_fg|^2,
    0 for none.
    """

    foreground: Training
    background: Training
    photographs: int
    foreground_penalty: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the weights are found.

    ``epochs`` over fresh composites; ``batch`` images; ``optimiser`` ``sgd`` (Nesterov, with ``momentum``) or
    ``adamw`` (``momentum`` is beta_1); ``learning_rate`` is the peak, reached linearly over the first
    ``warmup_epochs`` and lowered to 0 by half a cosine; ``weight_decay`` acts on tensors of two dimensions or more;
    ``shear_64`` the largest slope of the augmentation, in 64ths (see ``windtunnel.models.augment``); ``adversarial``
    or None. ``noise``: standard deviation of the Gaussian noise every image gets, in units of [0, 1]; ``consistency``
    of two such views; ``view``: keyword arguments for the data set's ``training_epoch``; ``fusion``: the training of
    the experts, and of architecture ``fusion`` alone.
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
    noise: float | None = None
    consistency: ConsistencyTraining | None = None
    view: dict[str, Any] | None = None
    fusion: FusionTraining | None = None

    def problems(self) -> list[str]:
        """What is impossible about the values, in words."""
        found = []
        if self.optimiser not in OPTIMISERS:
            found.append(f"training.optimiser is '{self.optimiser}', must be one of {', '.join(OPTIMISERS)}")
        budget = self.adversarial
        if budget is not None and not (budget.eps_255 > 0 and budget.step_255 > 0 and budget.ramp_epochs >= 0):
            found.append(f"training.adversarial has a budget or step of 0 or less, or a negative ramp: {budget}")
        if self.noise is not None and self.noise <= 0:
            found.append(f"training.noise is {self.noise}, must be positive; leave it out for none")
        if self.consistency is not None:
            if self.noise is None:
                found.append("training.consistency compares noisy views: it needs training.noise")
            if min(self.consistency.weight, self.consistency.eta) < 0:
                found.append(f"training.consistency has a negative weight: {self.consistency}")
        if self.fusion is not None:
            found += [f"fusion.{part}: {p}" for part in ("foreground", "background")
                      for p in getattr(self.fusion, part).problems()]  # fmt: skip
            if self.fusion.photographs < 2 or self.fusion.foreground_penalty < 0:
                found.append("training.fusion needs two photographs or more and a penalty of 0 or more")
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
    typed, found = _read_training("training", settings.get("training") or {})
    if typed is None or problems:
        raise BadRecipe("; ".join(problems + found))
    if typed.problems():
        raise BadRecipe("; ".join(typed.problems()))
    normalisation = settings["normalisation"]
    return Recipe(
        network=dict(settings["network"]),
        mean=tuple(normalisation["mean"]),
        std=tuple(normalisation["std"]),
        training=typed,
    )


def _read_training(where: str, settings: Mapping[str, Any]) -> tuple[Training | None, list[str]]:
    """A training's typed form, or None and what is wrong with its keys."""
    problems = _typed_problems(where, settings, Training)
    typed: dict[str, Any] = dict(settings)
    for key, kind in (("adversarial", AdversarialTraining), ("consistency", ConsistencyTraining)):
        if settings.get(key) is not None:
            found = _typed_problems(f"{where}.{key}", settings[key], kind)
            problems += found
            typed[key] = None if found else kind(**settings[key])
    if settings.get("fusion") is not None:
        given = dict(settings["fusion"])
        found = _typed_problems(f"{where}.fusion", given, FusionTraining)
        for key in ("foreground", "background"):
            given[key], more = _read_training(f"{where}.fusion.{key}", given.get(key) or {})
            found += more
        problems += found
        typed["fusion"] = None if found else FusionTraining(**given)
    return (None if problems else Training(**typed)), problems


def _typed_problems(where: str, found: Mapping[str, Any], kind: type) -> list[str]:
    """Missing and unknown keys of a dataclass; fields with a default may be missing."""
    optional = {f.name for f in fields(kind) if f.default is not MISSING}
    return _key_problems(where, found, {f.name for f in fields(kind)}, optional)


def _key_problems(
    where: str, found: Mapping[str, Any], wanted: set[str], optional: set[str] = frozenset()
) -> list[str]:
    missing, unknown = sorted(wanted - optional - set(found)), sorted(set(found) - wanted)
    problems = [f"{where}.{key} is missing" for key in missing]
    return problems + [f"{where}.{key} is unknown (known: {', '.join(sorted(wanted))})" for key in unknown]
