"""A model in train mode is another model, and another one after every batch."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, NONE, OK, Cell, Evidence, Finding

TITLE = "Train mode"
THRESHOLD = (
    "a module in train mode, a state that forward passes change, or answers that depend on the batch (logits of 8 "
    "images alone and within 64 apart by more than 1e-4 of their range)"
)
MEANS = (
    "The model normalises over the batch, drops units or updates its statistics while it is judged. Its answer to an "
    "image depends on the image's neighbours and on what came before, so no accuracy of it is a property of the model."
)
REMEDY = "Call model.eval() and keep it there; replace layers that ignore it; run again."
NEGLIGIBLE = 1e-4


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every cell of a model of which it is known (diagnostic ``pipeline_contract``): how many of the three hold.

    The flag alone can lie (a layer that ignores it; a flag that changes nothing), so state and batch are looked at as
    well. Batch dependence is asked of deterministic pipelines only: a random one differs from itself anyway.
    """
    found = {}
    for cell in evidence.cells:
        if cell.failed:
            continue
        facts = [evidence.fact(cell, "train_mode"), evidence.fact(cell, "state_changed"), _batch(evidence, cell)]
        known = [fact > NEGLIGIBLE for fact in facts if fact is not None]
        if known:
            found[cell.cell_id] = Finding(FLAG if any(known) else OK, float(sum(known)))
    return found


def _batch(evidence: Evidence, cell: Cell) -> float | None:
    for defense in (NONE, cell.defense):
        if not evidence.fact(cell, "random", defense):
            fact = evidence.fact(cell, "batch_dependence", defense)
            if fact is not None:
                return fact
    return None
