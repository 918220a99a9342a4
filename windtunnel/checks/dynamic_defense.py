"""A pipeline that optimises while it answers is not the function whose gradient was followed."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "Dynamic defense"
THRESHOLD = "a gradient is taken inside the forward pass"
MEANS = (
    "The pipeline computes gradients while it answers (test-time adaptation, purification by optimisation). An "
    "attack's gradient passes by that loop or through a part of it, so the attack is weaker than it looks; such "
    "defenses have mostly fallen to attacks made for them."
)
REMEDY = (
    "Attack the loop itself (unroll it, or use a stand-in as backward rule), compare with the static model, and call "
    "the accuracy an upper bound."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every cell whose pipeline was looked at (diagnostic ``pipeline_contract``): 1 if its forward pass takes
    gradients.
    """
    found = {}
    for cell in evidence.cells:
        fact = None if cell.failed else evidence.pipeline_fact(cell, "dynamic")
        if fact is not None:
            found[cell.cell_id] = Finding(FLAG if fact > 0 else OK, fact)
    return found
