"""Provide a model that is not shipped: train it, or take the user's own file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from windtunnel.models.card import make_card
from windtunnel.models.folder import MODULE, WEIGHTS, write_folder
from windtunnel.models.spec import ModelSpec
from windtunnel.store import file_digest

logger = logging.getLogger(__name__)


def provide(spec: ModelSpec, out: Path) -> None:
    """Write ``weights.safetensors`` and ``card.json`` of the model into ``out``: trained, or the user's own file."""
    if spec.architecture == "file":
        _take_file(spec, Path(out))
    else:
        train_into(spec, Path(out), origin="trained")


def train_into(spec: ModelSpec, out: Path, *, origin: str) -> dict[str, Any]:
    """Train the model and write weights and card into ``out``; returns the card."""
    from importlib.metadata import version

    from windtunnel.models import weights
    from windtunnel.models.train import first_epoch_digest, train

    model, metrics = train(spec)
    state = model.state_dict()
    content = weights.to_bytes(state, rounded=metrics["rounded"])
    card = make_card(
        spec,
        origin=origin,
        head=model.head.description(),
        feature_dim=model.body.feature_dim,
        parameters=sum(p.numel() for p in model.parameters()),
        metrics=metrics,
        weights=content,
        dtype="float16" if metrics["rounded"] else "float32",
        has_nan=bool(weights.non_finite(state)),
        made_with={name: version(name).split("+")[0] for name in ("torch", "timm")},
    )
    card["data"]["first_epoch_sha256"] = first_epoch_digest(spec)
    write_folder(Path(out), files={WEIGHTS: content}, card=card)
    logger.info("%s: %s, clean accuracy %.4f of %d", spec.name, origin, metrics["clean_accuracy"], metrics["n"])
    return card


def _take_file(spec: ModelSpec, out: Path) -> None:
    """Copy the user's module and weights, having built and loaded them once: a mistake shows here, not in an attack."""
    from windtunnel.models import own, weights

    source, given = Path(spec.recipe["file"]), Path(spec.recipe["weights"])
    content, text = given.read_bytes(), source.read_bytes()
    state = weights.read_state(given)
    model = own.build_own(source, spec.recipe.get("settings") or {}, state, head=spec.recipe.get("head"))
    card = make_card(
        spec,
        origin="file",
        head=model.description(),
        feature_dim=model.feature_dim,
        parameters=sum(p.numel() for p in model.parameters()),
        metrics=None,
        weights=content,
        dtype="as given",
        has_nan=bool(weights.non_finite(state)),
        made_with={},
    )
    card["module"] = {"file": MODULE, "sha256": file_digest(source)}
    write_folder(out, files={WEIGHTS: content, MODULE: text}, card=card)
