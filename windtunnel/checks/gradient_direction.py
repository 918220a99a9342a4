"""A gradient worth following beats random directions, on the real defense, nearly always."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "Gradient direction no guide"
THRESHOLD = "the gradient's step beats all 19 random sign steps on fewer than 90 % of the samples"
MEANS = (
    "One step of the whole budget along the gradient, judged on the real defense, should raise the margin more than "
    "any of 19 random steps of the same size. On too many samples it does not: this backward rule points elsewhere "
    "than uphill, and an attack that follows it finds too little."
)
REMEDY = (
    "Quote another backward rule (fewer rounds, the identity, a learned surrogate) and the worst case over rules; "
    "treat this rule's accuracy as an upper bound."
)
SHARE = 0.90
COARSE_LINF = 2 / 255


def check(evidence: Evidence) -> dict[str, Finding]:
    """Share of samples on which the gradient's step beats all random ones (diagnostic ``gradient_direction``).

    A sound pipeline reaches 1.00 and random directions .05. A masked gradient lies between (.40 for ten rounds of
    JPEG), so "no better than random" would miss it. The step is that of the cell's budget or the next larger one
    measured, and for linf more than 2/255: at 2/255 an honest rule through a codec that rounds was measured at .86 to
    .93. For gradient attacks on the judged pipeline; not run where nothing was measured, nor for the noise control.
    """
    found = {}
    for cell in evidence.cells:
        if not cell.informed or cell.failed:
            continue
        above = COARSE_LINF if cell.norm == "linf" else 0.0
        measured = evidence.measurement(cell, "gradient_direction", "beats_all", above=above)
        if measured is not None:
            share = float(np.nanmean(measured.values))
            found[cell.cell_id] = Finding(FLAG if share < SHARE else OK, share)
    return found
