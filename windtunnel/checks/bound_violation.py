"""An adversarial image outside its budget is not evidence about that budget."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "Budget exceeded"
THRESHOLD = "any sample farther from the clean image than eps (tolerance 1e-6, in the norm of the threat), as stored"
MEANS = "The attack, as stored and judged, left its ball: accuracy under it is lower than the stated budget allows."
REMEDY = (
    "Project after every step, store l2 images in float32, keep clean images on the 8-bit grid; then run the attack "
    "again."
)
TOLERANCE = 1e-6


def check(evidence: Evidence) -> dict[str, Finding]:
    """Share of attacked rows whose measured distance exceeds eps, or whose status is ``bound``."""
    found = {}
    for cell in evidence.cells:
        if cell.relation == "clean" or cell.eps is None or cell.norm not in ("linf", "l2"):
            continue
        distance = cell.columns[cell.norm]
        known = ~np.isnan(distance) | (cell.status.astype(str) == "bound")
        if not known.any():
            continue
        outside = (np.nan_to_num(distance) > cell.eps * (1 + TOLERANCE) + TOLERANCE) | (
            cell.status.astype(str) == "bound"
        )
        share = float(outside[known].mean())
        found[cell.cell_id] = Finding(FLAG if share > 0 else OK, share)
    return found
