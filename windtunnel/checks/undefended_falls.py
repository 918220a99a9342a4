"""An attack worth the name brings an undefended, ordinarily trained model to nothing at twice the budget."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, OK, Cell, Evidence, Finding

TITLE = "Undefended model does not fall"
THRESHOLD = "accuracy above 1 % at twice the largest reported budget"
MEANS = (
    "The same attack, at twice the largest budget of the tables, leaves an undefended, ordinarily trained model "
    "more than one image in a hundred. No image model withstands that: the attack is broken, or the model's "
    "gradient is."
)
REMEDY = (
    "Look at the zero-gradient check, attack with another loss (margin instead of cross-entropy), with more steps "
    "and restarts. Do not quote the robust accuracy before this reads ok. For an adversarially trained model the "
    "twin is an ordinarily trained one of the same data: run the same attack on it at twice the largest budget."
)
LIMIT = 0.01


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every cell of an iterative gradient attack on the judged model: the twin's accuracy at the probing budget.

    The twin is the model itself, undefended; for one marked ``adversarially_trained`` in the cell infos, the
    best-falling ordinarily trained model of the same data. The probe is the twin's largest budget, and counts only if
    it is at least twice every other budget of that attack in the run, budgets of defended cells included: at 1/255 an
    honest model stands too. Budgets that are themselves probes (linf, 64/255 and more) count as reported ones nowhere
    and as the probe only where no smaller one serves. Statistic: the twin's lowest accuracy at the probe over modes,
    iterates and attack seeds. Not run without such a probe, for single-step and black-box attacks, and for
    transferred images.
    """
    ladders = evidence.groups(
        key=_ladder, where=lambda c: c.relation != "clean" and c.labelled and c.eps is not None and c.gradients > 1
    )
    found = {}
    for cells in ladders.values():
        bare = [c for c in cells if c.relation == "bare"]
        for cell in cells:
            if cell.relation in ("bare", "unaware", "through"):
                hardened = bool(cell.info.get("adversarially_trained"))
                lowest = _probe([c for c in bare if _is_twin(c, cell, hardened)], cells)
                if lowest is not None:
                    found[cell.cell_id] = Finding(FLAG if lowest > LIMIT else OK, lowest)
    return found


def _ladder(cell: Cell) -> tuple[object, ...]:
    return (cell.attack, cell.norm, cell.dataset, cell.split)


def _probe(twins: list[Cell], ladder: list[Cell]) -> float | None:
    reported = [c for c in ladder if not c.is_huge]
    for huge in (False, True):
        budgets = sorted({c.eps for c in twins if c.is_huge == huge})
        if not budgets:
            continue
        budget = budgets[0] if huge else budgets[-1]
        others = [c.eps for c in reported if c.relation != "bare" or c.eps < budget]
        if others and budget >= 2 * max(others) * (1 - 1e-9):
            return min(c.accuracy for c in twins if c.eps == budget)
    return None


def _is_twin(twin: Cell, cell: Cell, hardened: bool) -> bool:
    if hardened:
        return not twin.info.get("adversarially_trained")
    return (twin.model, twin.model_seed, twin.images) == (cell.model, cell.model_seed, cell.images)
