"""Doing the same cleaning again changes next to nothing in an image; it must not make a model robust."""

from __future__ import annotations

import numpy as np

from windtunnel.checks.base import CONTROL, FLAG, OK, Cell, Evidence, Finding, aligned, rounds_of
from windtunnel.metrics.intervals import mcnemar_exact

TITLE = "More rounds raise white-box accuracy"
THRESHOLD = "accuracy +5 points (exact McNemar p < .001) between rounds whose clean predictions agree on 98 %"
MEANS = (
    "The defense applied more often gives nearly the same images and the same clean predictions, yet the attack "
    "through it, by this backward rule, does worse with every round. What grows is the number of approximate "
    "gradients in a row: masking."
)
REMEDY = (
    "Differentiate one round only (rule surrogate-1) and quote the worst case over rules, never this rule's curve "
    "alone."
)
RISE, AGREEMENT, LEVEL = 0.05, 0.98, 0.001


def check(evidence: Evidence) -> dict[str, Finding]:
    """For through-cells of ``<defense>-x<rounds>``, per rule: the largest rise over any smaller number of rounds.

    Only pairs count in which clean predictions behind both agree on at least 98 % of the samples. The other half of
    "near-idempotent", a mean change of at most 1/255 from round to round, cannot be seen in the sample table (PSNR
    there is against the clean image), so agreement alone decides. With one round ``surrogate-n`` is ``surrogate-1``,
    whose cell then stands for both. Statistic: accuracy with more rounds minus accuracy with fewer, on the same
    samples.
    """
    through = evidence.groups(
        key=lambda c: _series(c, c.through),
        where=lambda c: c.relation == "through" and c.labelled and not c.is_random and c.through != CONTROL,
    )
    found: dict[str, Finding] = {}
    for cells in through.values():
        stand_in = through.get(_series(cells[0], "surrogate-1"), []) if cells[0].through == "surrogate-n" else []
        firsts = [c for c in stand_in if rounds_of(c.defense)[1] == 1]
        for cell in cells:
            fewer = [c for c in [*firsts, *cells] if rounds_of(c.defense)[1] < rounds_of(cell.defense)[1]]
            rises = [r for r in (_rise(evidence, c, cell) for c in fewer) if r is not None]
            if rises:
                flagged = [r for r, significant in rises if significant]
                statistic = max(flagged) if flagged else max(r for r, _ in rises)
                found[cell.cell_id] = Finding(FLAG if flagged else OK, statistic)
    return found


def _series(cell: Cell, rule: str) -> tuple[object, ...]:
    base, _ = rounds_of(cell.defense)
    return (
        cell.model,
        cell.model_seed,
        cell.images,
        base,
        cell.attack,
        cell.threat,
        cell.attack_seed,
        cell.mode,
        cell.iterate,
        rule,
    )


def _rise(evidence: Evidence, fewer: Cell, more: Cell) -> tuple[float, bool] | None:
    clean = [evidence.clean(fewer), evidence.clean(more)]
    if clean[0] is None or clean[1] is None:
        return None
    _, predictions = aligned([clean[0], clean[1]], "pred")
    known = ~np.isnan(predictions).any(axis=0)
    if not known.any() or (predictions[0, known] == predictions[1, known]).mean() < AGREEMENT:
        return None
    _, values = aligned([fewer, more])
    values = values[:, ~np.isnan(values).any(axis=0)]
    if not values.size:
        return None
    right = values >= 0.5
    rise = float(right[1].mean() - right[0].mean())
    significant = rise >= RISE - 1e-12 and _p_value(right[0], right[1]) < LEVEL
    return rise, significant


def _p_value(before: np.ndarray, after: np.ndarray) -> float:
    return mcnemar_exact(int((before & ~after).sum()), int((after & ~before).sum()))
