"""Read a provided model: the classifier for jobs that need gradients, the head alone for those that need numbers.

A model folder holds ``weights.safetensors`` and ``card.json`` (and ``model.py`` for a user's own model: a file with a
function ``build(settings) -> torch.nn.Module``, whose normalisation is the module's own business; see
``windtunnel.models.own``). ``load_head`` and ``load_card`` import no torch.

Weights that are not finite are loaded: ``load_card(folder)["has_nan"]`` and ``model.has_nan`` say so, and the run
records rows of status ``nan`` instead of stopping.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from windtunnel.models.arrays import fold, head_keys
from windtunnel.models.folder import MODULE, WEIGHTS, BadWeights, check_folder, load_card
from windtunnel.scores.base import Head

if TYPE_CHECKING:
    from windtunnel.models.base import Classifier

__all__ = ["BadWeights", "load_card", "load_head", "load_model"]


def load_model(folder: Path) -> Classifier:
    """The classifier of a model folder: checked against its card, float32, eval mode, frozen."""
    from windtunnel.models.base import freeze
    from windtunnel.models.weights import non_finite, read_state

    folder = Path(folder)
    card = load_card(folder)
    check_folder(folder, card)
    state = read_state(folder / WEIGHTS)
    if card["architecture"] == "file":
        from windtunnel.models.own import build_own

        recipe = card["recipe"]
        model: Classifier = build_own(folder / MODULE, recipe.get("settings") or {}, state, head=recipe.get("head"))
    else:
        from windtunnel.models.build import build_classifier

        model = build_classifier(
            architecture=card["architecture"], head=card["head"]["kind"], recipe=card["recipe"], classes=card["classes"]
        )
        try:
            model.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise BadWeights(f"the weights in '{folder}' do not fit the card's recipe: {error}") from None
    freeze(model)
    model.has_nan = bool(non_finite(state))
    return model


def load_head(folder: Path) -> Head:
    """The classification head as arrays, read from the safetensors file with numpy alone."""
    from safetensors import safe_open

    folder = Path(folder)
    card: dict[str, Any] = load_card(folder)
    check_folder(folder, card)
    if card["head"] is None:
        raise LookupError(f"the model in '{folder}' names no 'head': its last layer is not known as arrays")
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        arrays = {key: file.get_tensor(key) for key in head_keys(card["head"])}
    return fold(card["head"], arrays)
