"""An attack that random signs can replace owes nothing to its gradient."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import CONTROL, FLAG, OK, Cell, Evidence, Finding, aligned, broken, notable

TITLE = "Random signs do as well"
THRESHOLD = "the noise control breaks at least as many samples as this backward rule, less max(3, 1 % of n)"
MEANS = (
    "The same attack with its gradient replaced by random signs breaks as many samples as with this backward rule. "
    "Whatever the attack finds it finds by stepping about: the gradient carries no information."
)
REMEDY = (
    "Attack through another backward rule or without gradients (Square), and do not call the remaining accuracy "
    "robust until an attack clearly beats its own noise control."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For through-cells by an informed rule: samples that the control (rule ``noise``) breaks minus those this breaks.

    Compared is the same attack on the same pipeline and threat, iterates, modes and attack seeds together, on samples
    that both judged and that the pipeline gets right on the clean image (all, without a clean cell). Each informed
    rule is compared for itself, so that a masked one shows beside a sound one; the best rule is flagged exactly when
    all are. Statistic: the difference as a share of n, -1 to 1. Not run where the comparison could not tell: neither
    side breaks more than twice the slack, or both break all but the slack.
    """
    groups = evidence.groups(
        key=lambda c: (c.judge, c.threat, c.attack),
        where=lambda c: c.relation == "through" and c.labelled and c.uses_gradient is True,
    )
    found: dict[str, Finding] = {}
    for cells in groups.values():
        control = [c for c in cells if c.through == CONTROL]
        for rule in dict.fromkeys(c.through for c in cells if c.informed and control):
            by_rule = [c for c in cells if c.through == rule]
            finding = _compare(evidence, by_rule, control)
            if finding is not None:
                found |= {c.cell_id: finding for c in by_rule}
    return found


def _compare(evidence: Evidence, by_rule: list[Cell], control: list[Cell]) -> Finding | None:
    clean = evidence.clean(by_rule[0])
    cells = [*by_rule, *control, *([clean] if clean is not None and clean.labelled else [])]
    _, values = aligned(cells)
    informed = broken(values[: len(by_rule)])
    noise = broken(values[len(by_rule) : len(by_rule) + len(control)])
    counted = ~np.isnan(informed) & ~np.isnan(noise)
    if len(cells) > len(by_rule) + len(control):
        counted &= values[-1] >= 0.5
    n = int(counted.sum())
    slack = notable(n)
    least, most = sorted((float(informed[counted].sum()), float(noise[counted].sum())))
    if most <= 2 * slack or least >= n - slack:
        return None
    more = float(noise[counted].sum() - informed[counted].sum())
    return Finding(FLAG if more >= -slack else OK, more / n)
