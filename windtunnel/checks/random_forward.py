"""A pipeline that answers differently each time was judged on luck, unless its draws were counted."""

from __future__ import annotations

from windtunnel.checks.base import FLAG, NONE, OK, Evidence, Finding

TITLE = "Random forward pass"
THRESHOLD = "repeated answers to one image differ, and the defense is not declared random or its draws are not recorded"
MEANS = (
    "The pipeline answers one and the same image differently from call to call. An attack that is judged once meets "
    "a lucky draw; an attack whose gradient saw one draw follows noise. Both look like robustness."
)
REMEDY = (
    "Remove the randomness, or declare the defense random: it is then attacked by gradients averaged over draws and "
    "judged on twenty fresh ones."
)


def check(evidence: Evidence) -> dict[str, Finding]:
    """For every cell whose pipeline was looked at (diagnostic ``pipeline_contract``): 1 if repeated answers differ.

    A defense that is declared random (cell infos) and judged on counted draws (``n_draws``) is ok. Randomness of the
    bare model is declared by nobody and flags every pipeline with it.
    """
    found = {}
    for cell in evidence.cells:
        fact = None if cell.failed else evidence.pipeline_fact(cell, "random")
        if fact is None:
            continue
        declared = bool(cell.info.get("defense_is_random")) and cell.is_random
        honest = fact == 0 or (declared and not evidence.fact(cell, "random", NONE))
        found[cell.cell_id] = Finding(OK if honest else FLAG, fact)
    return found
