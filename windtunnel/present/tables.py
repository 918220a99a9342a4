"""The tables of a run: frames of ``metrics`` and ``cells`` in, a ``Table`` of fractions out. Pure; ``render`` prints
them.

A table of which this run has no rows comes out empty and says so where it is printed. No number is computed here beyond
choosing rows: what a table shows stands in ``metrics`` with the same value.
"""

from __future__ import annotations

import pandas as pd

from windtunnel.present.layout import Table
from windtunnel.present.tables_attacks import defenses, robust_accuracy
from windtunnel.present.tables_checks import checks, checks_page, failed
from windtunnel.present.tables_ood import ood, ood_defended, ood_paired, ood_sets


def all_tables(metrics: pd.DataFrame, cells: pd.DataFrame, trivial: pd.DataFrame | None = None) -> dict[str, Table]:
    """Every table of a run by name, in the order of the report."""
    made = (
        robust_accuracy(metrics, cells),
        defenses(metrics, cells),
        ood(metrics, cells, trivial),
        ood_sets(metrics, cells, trivial),
        ood_paired(metrics, cells),
        ood_defended(metrics, cells),
        checks(cells),
        failed(cells),
    )
    return {table.name: table for table in made}


__all__ = [
    "all_tables", "checks", "checks_page", "defenses", "failed", "ood", "ood_defended", "ood_paired", "ood_sets",
    "robust_accuracy",
]  # fmt: skip
