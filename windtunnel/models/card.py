"""What stands beside the weights: a card without a timestamp. No torch."""

from __future__ import annotations

import hashlib
from typing import Any

from windtunnel.models.folder import WEIGHTS
from windtunnel.models.spec import ALGORITHM_VERSION, ModelSpec, data_identity, recipe_digest

CARD_VERSION = 1
LICENCE = "MIT"


def make_card(
    spec: ModelSpec,
    *,
    origin: str,
    head: dict[str, Any] | None,
    feature_dim: int | None,
    parameters: int,
    metrics: dict[str, Any] | None,
    weights: bytes,
    dtype: str,
    has_nan: bool,
    made_with: dict[str, str],
) -> dict[str, Any]:
    """The card of freshly made weights. ``origin``: ``shipped`` | ``trained`` | ``file``; absent values are None.

    ``head`` names the tensors in the weights file that make up the head (see ``windtunnel.models.arrays.fold``).
    """
    return {
        "card_version": CARD_VERSION,
        "name": spec.name,
        "architecture": spec.architecture,
        "head": head,
        "feature_dim": feature_dim,
        "classes": spec.classes,
        "class_names": list(spec.class_names),
        "parameters": parameters,
        "recipe": spec.recipe,
        "seed": spec.seed,
        "algorithm_version": ALGORITHM_VERSION,
        "recipe_digest": recipe_digest(spec),
        "data": data_identity(spec.dataset),
        "metrics": metrics,
        "weights": {
            "file": WEIGHTS,
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "dtype": dtype,
        },
        "has_nan": has_nan,
        "made_with": made_with,
        "licence": LICENCE if spec.architecture != "file" else None,
        "origin": origin,
    }
