"""A surrogate's folder: trained into it, checked and read from it.

    weights.safetensors   the network (float32)
    card.json             digest of the weights, shape, recipe, seed, rounds, fidelity, and the identity it was asked by

The same call writes the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from windtunnel.backend import torch
from windtunnel.defenses.base import BackwardRule, Defense
from windtunnel.models.folder import CARD, WEIGHTS, BadWeights, check_file, load_card, write_folder
from windtunnel.surrogates.train import Recipe, settings, train_surrogate
from windtunnel.surrogates.unet import Shape, UNet

ALGORITHM_VERSION = 1
REMEDY = "delete the folder and train the surrogate again"


class BadSurrogate(RuntimeError):
    """A surrogate's folder that is missing, half written or damaged; the message says which file and what to do."""


def provide(
    defense: Defense,
    rounds: int,
    images: np.ndarray,
    folder: Path,
    *,
    identity: dict[str, Any],
    seed: int = 0,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train a surrogate (see ``train_surrogate``) and write it into ``folder``, the card last; returns the card.

    ``identity`` is whatever the caller holds the surrogate by (JSON: the defense's settings, the digest of the images);
    it is stored as it is and not read here.
    """
    from windtunnel.models.weights import to_bytes

    recipe = recipe or Recipe()
    state, metrics = train_surrogate(defense, rounds, images, seed=seed, recipe=recipe)
    content = to_bytes(state, rounded=False)
    card = {
        "kind": "surrogate",
        "algorithm_version": ALGORITHM_VERSION,
        "identity": identity,
        "rounds": rounds,
        "seed": seed,
        "recipe": settings(recipe),
        "metrics": metrics,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest()},
    }
    write_folder(folder, files={WEIGHTS: content}, card=card)
    return card


def load(folder: Path) -> BackwardRule:
    """The surrogate of a folder as a backward rule: frozen, float32 inside, on whatever device its input lies.

    Raises ``BadSurrogate`` where the folder, the card or the weights are missing, or the weights are not the card's.
    """
    from windtunnel.models.weights import non_finite, read_state

    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise BadSurrogate(f"no surrogate in '{folder}': {CARD} is missing; train the surrogate first")
    try:
        card = load_card(folder)
        check_file(folder / WEIGHTS, card["weights"]["sha256"], remedy=REMEDY)
        network = UNet(Shape(width=card["recipe"]["width"], deep=card["recipe"]["deep"]))
        state = read_state(folder / WEIGHTS)
        network.load_state_dict(state)
    except BadWeights as error:
        raise BadSurrogate(str(error)) from None
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadSurrogate(f"'{folder / CARD}' does not describe the surrogate beside it ({error}); {REMEDY}") from None
    if broken := non_finite(state):
        raise BadSurrogate(f"'{folder / WEIGHTS}' holds NaN or infinity in {broken[:3]}; {REMEDY}")
    return LearnedRule(network)


class LearnedRule:
    """A frozen network as a backward rule ``x -> x``: no gradient reaches its weights, no caller can train it."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network.float().eval().requires_grad_(False)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if next(self._network.parameters()).device != x.device:
            self._network.to(x.device)
        return self._network(x.float()).to(x.dtype)
