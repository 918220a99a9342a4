"""One step cannot find more than many: where it does, the many went astray."""

from __future__ import annotations

from collections.abc import Mapping

from windtunnel.checks.base import FLAG, OK, Cell, Evidence, Finding, notable, only_broken_by

TITLE = "Single step beats iterative"
THRESHOLD = "samples broken by the one-step attack and by no iterative one: at least max(3, 1 % of n)"
MEANS = (
    "A one-step attack breaks samples that no iterate of the iterative attacks breaks, at the same budget on the "
    "same pipeline. An iterative attack that follows a useful gradient contains the single step: this is a sign of "
    "masked gradients."
)
REMEDY = (
    "Attack with a smaller step, restarts, another loss or another backward rule, and quote the worst case over all."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For iterative cells: the share of samples that only single-step attacks on the same pipeline break.

    Compared are attacks that saw the judged pipeline, by the same backward rule, at the same threat; a single-step
    attack is FGSM or one with ``steps: 1`` (without settings: at most one backward pass on any sample); all iterates,
    modes and attack seeds of a side count together.
    """
    groups = evidence.groups(
        key=lambda c: (c.judge, c.threat, c.through),
        where=lambda c: c.informed and c.labelled and c.gradients >= 1,
    )
    found: dict[str, Finding] = {}
    for cells in groups.values():
        single, iterative = [c for c in cells if _is_single(c)], [c for c in cells if not _is_single(c)]
        count, n = only_broken_by(single, iterative)
        if n == 0:
            continue
        state = FLAG if count >= notable(n) else OK
        found |= {c.cell_id: Finding(state, count / n) for c in iterative}
    return found


def _is_single(cell: Cell) -> bool:
    """By the settings where they are known: draws and members of an ensemble multiply the backward passes of a step."""
    settings = cell.info.get("attack_settings")
    if cell.info.get("attack_method") == "fgsm":
        return True
    if isinstance(settings, Mapping) and "steps" in settings:
        return settings["steps"] == 1
    return cell.gradients <= 1
