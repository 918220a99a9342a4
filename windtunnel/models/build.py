"""From a recipe to a classifier with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from windtunnel.backend import torch
from windtunnel.models.base import Classifier
from windtunnel.models.heads import build_head
from windtunnel.models.recipes import read_recipe


def build_body(architecture: str, network: Mapping[str, Any]) -> torch.nn.Module:
    """The network without its head: [N, 3, H, W] normalised -> [N, D], with ``feature_dim`` and ``maps``."""
    if architecture == "cnn":
        from windtunnel.models.cnn import Cnn

        return Cnn(**network)
    if architecture == "vit":
        from windtunnel.models.vit import Vit

        return Vit(**network)
    if architecture == "fusion":
        from windtunnel.models.fusion import Fusion

        return Fusion(**network)
    raise ValueError(f"unknown architecture '{architecture}'; known: cnn, vit, fusion")


def build_classifier(
    *, architecture: str, head: str, recipe: Mapping[str, Any], classes: int, seed: int = 0
) -> Classifier:
    """A classifier in train mode; weights depend on ``seed`` alone, the caller's random state stays as it was."""
    typed = read_recipe(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = build_body(architecture, typed.network)
        top = build_head(head, features=body.feature_dim, classes=classes)
    return Classifier(body, top, mean=list(typed.mean), std=list(typed.std))
