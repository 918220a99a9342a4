"""Train the built-in models and store them under ``resources/``: ``python -m windtunnel.models.ship [--force]
[names]``.

To be run from the repository's root after a change of recipe, data or trainer. Models whose card already bears the
wanted recipe digest are left alone unless ``--force`` is given. Takes one to three minutes a model on one core.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from windtunnel.models.folder import CARD, load_card
from windtunnel.models.provide import train_into
from windtunnel.models.spec import UnknownModel, read_catalogue, recipe_digest
from windtunnel.registry import did_you_mean

logger = logging.getLogger(__name__)


def ship_all(
    names: Sequence[str] = (), *, resources: Path = Path("resources"), force: bool = False
) -> dict[str, dict[str, object]]:
    """Train what is not up to date (all models, or the named ones) into ``resources/models/``; returns the cards."""
    specs = read_catalogue()
    unknown = [name for name in names if name not in specs]
    if unknown:
        lines = [f"unknown model '{name}'{did_you_mean(name, list(specs))}" for name in unknown]
        raise UnknownModel("; ".join(lines) + f" Known: {', '.join(specs)}")
    cards = {}
    for name in names or specs:
        folder = resources / "models" / name
        current = load_card(folder) if (folder / CARD).is_file() else {}
        if not force and current.get("recipe_digest") == recipe_digest(specs[name]):
            logger.info("%s: up to date", name)
            cards[name] = current
            continue
        cards[name] = train_into(specs[name], folder, origin="shipped")
    return cards


def main(arguments: Sequence[str]) -> None:
    """The command line: names, and --force."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    ship_all([a for a in arguments if a != "--force"], force="--force" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
