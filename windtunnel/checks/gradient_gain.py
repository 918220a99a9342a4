"""Of several backward rules, the one that climbs half as high is not the one to quote."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Evidence, Finding, Measurement

TITLE = "Backward rule gains little"
THRESHOLD = "mean margin gain of one gradient step below half of the best backward rule's"
MEANS = (
    "One gradient step by this backward rule raises the margin on the real defense by less than half of what the "
    "best measured rule achieves on the same images. An attack through this rule alone understates what an attacker "
    "can do."
)
REMEDY = "Quote the worst case over rules (robust accuracy does); never this rule's number alone."
SHARE = 0.5


def check(evidence: Evidence) -> dict[str, Finding]:
    """For through-cells: this rule's mean margin gain over the best rule's (diagnostic ``gradient_direction``).

    Measured on the real defense, on the same samples, with the same step (the cell's budget or the next larger one
    measured). Ten rounds of JPEG: 1.19 through all rounds, 8.56 through one. Statistic: the ratio, 1 for the best
    rule, negative where the step lowers the margin. Not run unless two rules were measured and the best gains
    anything, nor for the noise control.
    """
    best: dict[tuple[object, ...], dict[str, float]] = {}
    for m in evidence.measurements:
        if (m.diagnostic, m.quantity) == ("gradient_direction", "gain") and not np.isnan(m.mean):
            best.setdefault(_pipeline(m), {})[m.through] = m.mean
    found = {}
    for cell in evidence.cells:
        if cell.relation != "through" or not cell.informed or cell.failed:
            continue
        own = evidence.measurement(cell, "gradient_direction", "gain")
        if own is None:
            continue
        gains = best[_pipeline(own)]
        if len(gains) >= 2 and max(gains.values()) > 0:
            ratio = own.mean / max(gains.values())
            found[cell.cell_id] = Finding(FLAG if ratio < SHARE else OK, ratio)
    return found


def _pipeline(m: Measurement) -> tuple[object, ...]:
    return (m.model, m.model_seed, m.defense, m.images, m.norm, m.eps)
