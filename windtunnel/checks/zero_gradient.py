"""A gradient of zeros is no direction: the attack stands still and the model looks robust."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import CONTROL, FLAG, OK, Evidence, Finding, aligned

TITLE = "Zero gradients"
THRESHOLD = "all-zero gradient on more than 1 % of the samples that the attacked pipeline gets right"
MEANS = (
    "On these samples the gradient of the loss that the attack uses was zero in every pixel (saturated softmax, a "
    "hard rounding, a detached layer), so the attack had no direction there. It says that the attack failed, not "
    "that the model is robust."
)
REMEDY = (
    "Use a margin loss (APGD-DLR), attack through another backward rule, or add a black-box attack; if the zeros "
    "stay, report the number as not measured."
)
LIMIT = 0.01


def check(evidence: Evidence) -> dict[str, Finding]:
    """Share of clean-correct samples (through the pipeline that was attacked) with an all-zero gradient.

    Without a clean cell of the attacked pipeline all samples count. Not run for transferred images (the finding
    belongs to the source's cell), black-box attacks, the noise control, and where nothing was recorded.
    """
    found = {}
    for cell in evidence.cells:
        if cell.relation in ("clean", "transfer") or cell.through == CONTROL or not cell.gradients > 0:
            continue
        zero = cell.columns["zero_gradient"]
        counted = ~np.isnan(zero)
        clean = evidence.clean(cell, cell.attack_defense)
        if clean is not None and clean.labelled:
            ids, values = aligned([clean])
            place = np.searchsorted(ids, cell.ids).clip(0, len(ids) - 1)
            counted &= (ids[place] == cell.ids) & (values[0, place] >= 0.5)
        if not counted.any():
            continue
        share = float(zero[counted].mean())
        found[cell.cell_id] = Finding(FLAG if share > LIMIT else OK, share)
    return found
