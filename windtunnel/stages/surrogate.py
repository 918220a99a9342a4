"""Learned stand-ins for defenses: trained on pairs of the real thing, read by attacks as the backward rule ``unet``."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.models.folder import CARD, WEIGHTS
from windtunnel.plan import Plan
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage

N = 2000
"""Images that a stand-in learns from: a fixed nested subset of the split on which scores are fitted, never of test."""


def train(plan: Plan, dataset: str, defense: str, folder: Path) -> None:
    """Train the stand-in of one defense, rounds included, for the images of one data set.

    One that cannot be trained is a card that says why: the attacks through it fail with that reason, the others go on.
    """
    from windtunnel.surrogates.provide import provide

    name = plan.surrogate_set(dataset)
    image_set = image_stage.read(plan, name, NONE, N)
    identity = {
        "defense": plan.defense_settings(defense),
        "networks": purify_stage.network_digests(plan, defense),
        "images": plan.images_settings(name, NONE),
        "content": image_stage.content(plan, name, NONE),
        "n": len(image_set.sample_ids),
    }
    try:
        method, rounds = purify_stage.build(plan, defense)
        provide(method, rounds, purify_stage.nchw(image_set.images), folder, identity=identity)
    except OSError as error:
        raise store.StoreError(f"cannot write '{folder}': {error}") from error
    except Exception as error:
        traceback.print_exc()
        store.write_atomic(folder / WEIGHTS, b"")
        store.write_json(folder / CARD, {"status": "error", "reason": f"{type(error).__name__}: {error}"[:500]})


def reason_of_failure(folder: Path) -> str | None:
    """Why there is no stand-in in this folder; null where there is one."""
    card = store.read_json(folder / CARD)
    return card.get("reason") if card.get("status") == "error" else None


def forget_failed(folders: Sequence[Path]) -> None:
    """Remove the cards of failed trainings, so that the next run tries them again."""
    for folder in folders:
        if (folder / CARD).is_file() and reason_of_failure(folder):
            (folder / CARD).unlink(missing_ok=True)
            (folder / WEIGHTS).unlink(missing_ok=True)
