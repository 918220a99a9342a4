"""An attack that knows the defense and does worse than one that does not was attacked through the wrong gradient."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import CONTROL, FLAG, OK, Evidence, Finding, aligned, notable

TITLE = "Through-attack weaker than the unaware one"
THRESHOLD = "the unaware attack breaks at least max(3, 1 % of n) samples more"
MEANS = (
    "The attack that differentiates the defense leaves a higher accuracy than the same attack that ignored it. The "
    "defense is not robust: this backward rule hides the gradient."
)
REMEDY = (
    "Quote the minimum over rules and the unaware attack (robust accuracy does). Use fewer rounds in the backward "
    "pass, the identity, a blur or a learned surrogate."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For through-cells: accuracy minus that under the unaware attack, on the same samples (positive = weaker).

    The unaware cell is that of the same attack and threat, on the judged defense, fully driven; of several iterates
    and seeds the one with the same, else the one that leaves the lowest accuracy. Not run without one, nor
    for the noise control, which is weaker by design.
    """
    unaware = evidence.groups(
        key=lambda c: (c.judge, c.threat, c.attack),
        where=lambda c: c.relation == "unaware" and c.labelled and c.mode == "full",
    )
    found = {}
    for cell in evidence.cells:
        if cell.relation != "through" or not cell.labelled or cell.through == CONTROL:
            continue
        rivals = unaware.get((cell.judge, cell.threat, cell.attack), [])
        same = [c for c in rivals if c.iterate == cell.iterate]
        differences = []
        for rival in same or rivals:
            _, values = aligned([cell, rival])
            known = ~np.isnan(values).any(axis=0)
            if known.any():
                differences.append((float((values[0, known] - values[1, known]).sum()), int(known.sum())))
        if not differences:
            continue
        more, n = max(differences, key=lambda d: d[0] / d[1])
        found[cell.cell_id] = Finding(FLAG if more >= notable(n) else OK, more / n)
    return found
