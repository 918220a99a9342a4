"""At a budget that lets the attacker repaint the image, whoever still answers right was not attacked."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import FLAG, OK, Cell, Evidence, Finding, aligned, broken

TITLE = "Accuracy survives a huge budget"
THRESHOLD = (
    "robust accuracy at a linf budget of 64/255 or more above max(1 %, a tenth of the accuracy under sign noise there)"
)
MEANS = (
    "With a quarter of the pixel range to spend, an attack that follows a useful gradient brings any image model to "
    "nothing, however it was trained. This attack, by this backward rule, did not: it has no direction, and its "
    "numbers at the reported budgets mean as little."
)
REMEDY = (
    "Look at the zero-gradient and gradient-direction checks; attack with a margin loss, another backward rule or a "
    "black-box attack, until accuracy at 64/255 is nothing."
)
FLOOR, SHARE = 0.01, 0.1


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every linf cell of a gradient attack on the judged pipeline: what the same attack leaves at a huge budget.

    The probe is the same attack by the same backward rule on the same pipeline and images at 64/255 or more; its
    iterates, modes and attack seeds count together. Chance accuracy is no bar: noise alone brings a model without any
    gradient to chance at 255/255, hence the comparison with sign noise of the same budget on the same pipeline. Where
    no noise was judged only what holds for any noise is said: at most 1 % is ok, more than 10 % a flag, in between the
    check is not run. Of several huge budgets the one nearest to a flag, or farthest beyond it, counts. Statistic: the
    robust accuracy there. Not defined for l2, whose huge budget depends on the number of pixels, which the samples do
    not say: not run.
    """
    probes = evidence.groups(key=_ladder, where=lambda c: c.is_huge and c.informed and c.labelled)
    noise = evidence.groups(
        key=lambda c: (c.judge, c.threat),
        where=lambda c: c.is_huge and c.is_sign_noise and c.labelled and (c.on_own_pipeline or c.mode != "search"),
    )
    answers = {ladder: _answer(cells, noise) for ladder, cells in probes.items()}
    found = {}
    for cell in evidence.cells:
        if cell.norm == "linf" and cell.informed and not cell.failed:
            answer = answers.get(_ladder(cell))
            if answer is not None:
                found[cell.cell_id] = answer
    return found


def _ladder(cell: Cell) -> tuple[object, ...]:
    return (cell.judge, cell.attack, cell.through)


def _answer(cells: list[Cell], noise: dict[tuple[object, ...], list[Cell]]) -> Finding | None:
    """Of all huge budgets the finding with the largest excess over its bar; None where none can be told."""
    told = []
    for threat in dict.fromkeys(c.threat for c in cells):
        at = [c for c in cells if c.threat == threat]
        values = broken(aligned(at)[1])
        known = ~np.isnan(values)
        if not known.any():
            continue
        accuracy = float((values[known] == 0).mean())
        rivals = noise.get((at[0].judge, threat), [])
        bar = max(FLOOR, SHARE * min((c.accuracy for c in rivals), default=1.0))
        if rivals or accuracy <= FLOOR or accuracy > SHARE:
            told.append((accuracy - bar, Finding(FLAG if accuracy > bar else OK, accuracy)))
    return max(told, key=lambda t: t[0])[1] if told else None
