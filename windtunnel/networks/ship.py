"""Train built-in networks and store them under ``resources/``: ``python -m windtunnel.networks.ship [--force] names``.

To be run from the repository's root after a change of recipe, data, teacher or method. Names are those of networks
(``hyperprior-2-s1``); one whose card already bears the wanted recipe digest is left alone unless ``--force`` is given.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from windtunnel.models.folder import CARD, load_card
from windtunnel.plan import Plan
from windtunnel.stages.network import provide_or_raise

logger = logging.getLogger(__name__)


def ship(names: Sequence[str], *, resources: Path = Path("resources"), force: bool = False) -> None:
    """Train the named networks into ``resources/networks/``, with the shipped models as teachers."""
    plan = Plan.of({"blocks": [{"images": "photodigits.test", "models": "digits-cnn"}]}, source="ship")
    for name in names:
        folder = resources / "networks" / name
        current = load_card(folder) if (folder / CARD).is_file() else {}
        if not force and current.get("recipe_digest") == plan.network_digest(name):
            logger.info("%s: up to date", name)
            continue
        provide_or_raise(plan, name, folder, origin="shipped", models=resources / "models")
        logger.info("%s: %s", name, load_card(folder)["metrics"])


def main(arguments: Sequence[str]) -> None:
    """The command line: names, and --force."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    ship([a for a in arguments if a != "--force"], force="--force" in arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
