"""Who sees the gradient cannot do worse than who does not, unless the gradient misleads."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, OK, Cell, Evidence, Finding, notable, only_broken_by, own_name

TITLE = "Black box beats white box"
THRESHOLD = "samples broken only without the pipeline's gradient: at least max(3, 1 % of n)"
MEANS = (
    "Random search, transferred images, an attack that ignored the defense or plain sign noise break samples that "
    "the gradient attacks on this very pipeline, by this backward rule, leave standing. The gradient that they "
    "follow is not a useful one."
)
REMEDY = (
    "Count the black-box attacks in the worst case (robust accuracy does), and attack through another backward "
    "rule: fewer rounds of the codec, the identity, a learned surrogate."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For gradient attacks on the judged pipeline, by backward rule: share of samples that only black boxes break.

    Black boxes are attacks whose method follows no gradient (random search, decision-based, sign noise), transferred
    images and those of ensembles without the judged model, attacks that saw no or another defense, and the noise
    control, all on the same judged pipeline and threat. What follows a gradient is told by the method (cell infos
    ``uses_gradient``), never by a name; without infos by the backward passes counted. All gradient attacks by one rule
    count together, so that a strong one covers a weak one; rules are kept apart, so that a masked rule shows beside a
    sound one.
    """
    groups = evidence.groups(
        key=lambda c: (c.judge, c.threat),
        where=lambda c: c.relation != "clean" and c.labelled and c.uses_gradient is not None,
    )
    found: dict[str, Finding] = {}
    for cells in groups.values():
        white = [c for c in cells if c.informed]
        black = [c for c in cells if not c.informed and _may_be_judged(c) and not _knows_the_model(c)]
        for rule in dict.fromkeys(c.through for c in white):
            by_rule = [c for c in white if c.through == rule]
            count, n = only_broken_by(black, by_rule)
            if n:
                state = FLAG if count >= notable(n) else OK
                found |= {c.cell_id: Finding(state, count / n) for c in by_rule}
    return found


def _may_be_judged(cell: Cell) -> bool:
    return cell.on_own_pipeline or cell.mode != "search"


def _knows_the_model(cell: Cell) -> bool:
    """Whether the images were made on an ensemble of which the judged, undefended model is a member."""
    own = own_name(cell.model, cell.model_seed, cell.info)
    return cell.defense == cell.attack_defense and own in (cell.info.get("source_members") or ())
