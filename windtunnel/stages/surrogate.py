"""Learned stand-ins for defenses: trained on pairs of the real thing, read by attacks as the backward rule ``unet``."""

from __future__ import annotations

from pathlib import Path

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.plan import Plan
from windtunnel.stages import images as image_stage
from windtunnel.stages import purify as purify_stage

N = 2000
"""Images that a stand-in learns from: a fixed nested subset of the split on which scores are fitted, never of test."""


def train(plan: Plan, dataset: str, defense: str, folder: Path) -> None:
    """Train the stand-in of one defense, rounds included, for the images of one data set."""
    from windtunnel.surrogates.provide import provide

    name = plan.surrogate_set(dataset)
    image_set = image_stage.read(plan, name, NONE, N)
    method, rounds = purify_stage.build(plan, defense)
    identity = {
        "defense": plan.defense_settings(defense),
        "images": plan.images_settings(name, NONE),
        "content": image_stage.content(plan, name, NONE),
        "n": len(image_set.sample_ids),
    }
    try:
        provide(method, rounds, purify_stage.nchw(image_set.images), folder, identity=identity)
    except OSError as error:
        raise store.StoreError(f"cannot write '{folder}': {error}") from error
