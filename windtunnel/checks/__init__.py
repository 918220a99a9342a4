"""The known ways of fooling oneself, as columns of the cells table: one check per file, this is the list.

Definitions and thresholds were chosen on planted cases: two obvious ones (chance accuracy at a huge budget, a
gradient no better than random signs) miss theirs and are not here.
"""

from __future__ import annotations

from types import ModuleType

from windtunnel.checks import (
    black_box_beats_white_box,
    bound_violation,
    dynamic_defense,
    eight_bit_loss,
    gradient_direction,
    gradient_gain,
    huge_eps,
    nan_gradient,
    noise_control,
    not_converged,
    random_forward,
    rounds_raise_accuracy,
    single_step_beats_iterative,
    softmax_output,
    surrogate_gap,
    through_weaker_than_unaware,
    train_mode,
    undefended_falls,
    zero_gradient,
)
from windtunnel.checks.base import Evidence, Finding, gather

CHECKS: dict[str, ModuleType] = {
    module.__name__.rsplit(".", 1)[-1]: module
    for module in (
        undefended_falls,
        huge_eps,
        zero_gradient,
        nan_gradient,
        gradient_direction,
        gradient_gain,
        noise_control,
        single_step_beats_iterative,
        black_box_beats_white_box,
        through_weaker_than_unaware,
        surrogate_gap,
        rounds_raise_accuracy,
        not_converged,
        bound_violation,
        eight_bit_loss,
        softmax_output,
        train_mode,
        random_forward,
        dynamic_defense,
    )
}
"""Check modules by name, in the order of the table's columns."""


def run_checks(evidence: Evidence) -> dict[str, dict[str, Finding]]:
    """Every check on the evidence: check name -> cell id -> finding. A missing cell was not looked at."""
    return {name: module.check(evidence) for name, module in CHECKS.items()}


__all__ = ["CHECKS", "Evidence", "Finding", "gather", "run_checks"]
