"""A NaN on the way of an attack ends it silently, and a NaN in the logits is no answer."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "NaN gradients or logits"
THRESHOLD = "any sample"
MEANS = (
    "On these samples a gradient or a logit was not a number. An attack cannot go on from there, and a comparison "
    "with NaN is always false. Windtunnel counts such samples as wrong, never as robust."
)
REMEDY = "Find the layer that overflows (float16, a division, a square root of zero) and run the cells again."


def check(evidence: Evidence) -> dict[str, Finding]:
    """Share of a cell's samples whose status is ``nan`` or, where the table has the column, whose ``nan_gradient`` is
    set.

    Cells in which every row failed to run (status ``error``) are not run.
    """
    found = {}
    for cell in evidence.cells:
        ran = cell.status.astype(str) != "error"
        if not ran.any():
            continue
        bad = (cell.status.astype(str) == "nan") | (np.nan_to_num(cell.columns["nan_gradient"]) > 0)
        share = float(bad[ran].mean())
        found[cell.cell_id] = Finding(FLAG if share > 0 else OK, share)
    return found
