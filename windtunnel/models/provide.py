"""Provide a model: copy the shipped weights, or train, or take the user's own file. Copying imports no torch.

Shipped weights are tied to recipe, seed and training data (``windtunnel.models.spec.recipe_digest``), not to the last
bits that another CPU would give. If the recipe or the data changed, the shipped ones are passed over and the model is
trained.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from windtunnel.models.card import CARD, MODULE, WEIGHTS, check_folder, load_card, make_card, write_folder
from windtunnel.models.spec import ModelSpec, recipe_digest
from windtunnel.store import file_digest

logger = logging.getLogger(__name__)


def provide(spec: ModelSpec, out: Path, resources: Path) -> dict[str, Any]:
    """Write ``weights.safetensors`` and ``card.json`` of the model into ``out``; returns the card.

    ``resources`` is the folder that holds ``models/<name>/``. Raises ``BadWeights`` if shipped weights are not those of
    their card: a damaged checkout must not be papered over by ten minutes of training.
    """
    out, shipped = Path(out), Path(resources) / "models" / spec.name
    if spec.architecture == "file":
        return _take_file(spec, out)
    if (shipped / CARD).is_file():
        card = load_card(shipped)
        if card.get("recipe_digest") == recipe_digest(spec):
            remedy = f"restore '{shipped}' from version control, or delete that folder to have the model trained"
            check_folder(shipped, card, remedy=remedy)
            write_folder(out, files={WEIGHTS: (shipped / WEIGHTS).read_bytes()}, card=card)
            logger.info("%s: shipped weights copied", spec.name)
            return card
        logger.warning("%s: the shipped weights are of another recipe or other data; training", spec.name)
    return train_into(spec, out, origin="trained")


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
    card["data"]["first_epoch_sha256"] = first_epoch_digest(spec.seed)
    write_folder(Path(out), files={WEIGHTS: content}, card=card)
    logger.info("%s: %s, clean accuracy %.4f of %d", spec.name, origin, metrics["clean_accuracy"], metrics["n"])
    return card


def _take_file(spec: ModelSpec, out: Path) -> dict[str, Any]:
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
    return card
