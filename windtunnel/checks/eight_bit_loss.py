"""A success that does not survive being written as a picture is not a success."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding, notable

TITLE = "Successes lost in 8-bit storage"
THRESHOLD = "samples fooled in float and right as stored: more than max(3, 0.5 % of n)"
MEANS = (
    "The attack had fooled the pipeline in floating point, and the stored 8-bit image no longer does. Windtunnel "
    "judges the stored image; a loss this large says that rounding, not the model, stops the attack."
)
REMEDY = (
    "Round inside the attack (choose the iterate after rounding) or spend a step on the 8-bit grid; check the clean "
    "images' grid."
)
SHARE = 0.005


def check(evidence: Evidence) -> dict[str, Finding]:
    """Share of samples with ``success_float`` whose stored image is right, on the attacked pipeline itself.

    Linf threats only (others are stored in float32), not for random defenses, and not for the last iterate, which
    need not be the one that had fooled.
    """
    found = {}
    for cell in evidence.cells:
        if not cell.on_own_pipeline or cell.norm != "linf" or cell.iterate == "last" or cell.is_random:
            continue
        fooled = cell.columns["success_float"]
        known = ~np.isnan(fooled) & ~np.isnan(cell.hit)
        if not known.any():
            continue
        lost, n = int(((fooled == 1) & (cell.hit >= 0.5) & known).sum()), int(known.sum())
        found[cell.cell_id] = Finding(FLAG if lost > notable(n, SHARE) else OK, lost / n)
    return found
