"""A stand-in of the defense is for its gradient; a number found on it is a number about it."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "Stand-in far from the defense"
THRESHOLD = "accuracy on the real defense and on the stand-in, under the same images, differ by more than 5 points"
MEANS = (
    "Images that were made by attacking the backward rule's own stand-in fool it and the real defense to different "
    "degrees. The stand-in is not this defense: its gradient may lead elsewhere, and an accuracy measured on it would "
    "be wrong by this much. (Accuracies of this run are judged on the real defense.)"
)
REMEDY = "Train a closer surrogate, or attack through rules whose gap is small; quote the worst case over rules."
LIMIT = 0.05


def check(evidence: Evidence) -> dict[str, Finding]:
    """For through-cells: accuracy on the real defense minus accuracy on the stand-in (diagnostic ``surrogate_gap``).

    At the cell's own budget, on the samples for which both are known. Positive: the stand-in falls more easily than
    the defense. Not run where nothing was measured at that budget, nor for the rules that claim to stand for nothing:
    the identity, whose values are those of the undefended model, and the noise control.
    """
    found = {}
    for cell in evidence.cells:
        if cell.relation != "through" or not cell.informed or cell.failed or cell.through == "identity":
            continue
        stand_in = evidence.measured(cell, "surrogate_gap", "fooled_stand_in", exact=True)
        real = evidence.measured(cell, "surrogate_gap", "fooled_real", exact=True)
        if stand_in is None or real is None or len(stand_in) != len(real):
            continue
        differences = stand_in - real
        if np.isnan(differences).all():
            continue
        gap = float(np.nanmean(differences))
        found[cell.cell_id] = Finding(FLAG if abs(gap) > LIMIT + 1e-12 else OK, gap)
    return found
