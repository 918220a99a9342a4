"""Probabilities where logits are expected."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, OK, Evidence, Finding

TITLE = "Softmax outputs"
THRESHOLD = "the model's outputs lie in [0, 1] and sum to 1 within 1e-5 on every sample looked at"
MEANS = (
    "The model answers probabilities, not logits. Losses on logits then apply a softmax twice, margins shrink, and "
    "scores that read logits (energy, DLR) are not what their names say. The contract is broken, whether or not a "
    "number moved."
)
REMEDY = "Drop the softmax at the model's end and run again."


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every cell of a model of which it is known (diagnostic ``pipeline_contract``): 1 probabilities, 0 logits."""
    found = {}
    for cell in evidence.cells:
        fact = None if cell.failed else evidence.fact(cell, "softmax")
        if fact is not None:
            found[cell.cell_id] = Finding(FLAG if fact > 0 else OK, fact)
    return found
