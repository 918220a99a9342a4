"""The tables of a run: frames of ``metrics`` and ``cells`` in, a ``Table`` of fractions out. Pure; ``render`` prints
them.

A table of which this run has no rows comes out empty and says so where it is printed. No number is computed here beyond
choosing rows: what a table shows stands in ``metrics`` with the same value. The exception is ``batteries``, which
counts samples (broken by which member, passes spent) that ``metrics`` has no rows for.
"""

from __future__ import annotations

import pandas as pd

from windtunnel.present.layout import Table
from windtunnel.present.select import SIMPLE, Composed
from windtunnel.present.tables_attacks import robust_accuracy
from windtunnel.present.tables_batteries import SAMPLE_COLUMNS, batteries
from windtunnel.present.tables_certified import certificates
from windtunnel.present.tables_checks import checks, checks_page, failed
from windtunnel.present.tables_defenses import defense_costs, defenses
from windtunnel.present.tables_diagnostics import diagnostics
from windtunnel.present.tables_ood import ood, ood_defended, ood_paired, ood_sets
from windtunnel.present.tables_realism import realism
from windtunnel.present.tables_shifts import shifts
from windtunnel.present.tables_transfer import transfer


def all_tables(
    metrics: pd.DataFrame,
    cells: pd.DataFrame,
    trivial: pd.DataFrame | None = None,
    *,
    samples: pd.DataFrame | None = None,
    composed: Composed = SIMPLE,
    certified: pd.DataFrame | None = None,
    costs: pd.DataFrame | None = None,
    measured: pd.DataFrame | None = None,
) -> dict[str, Table]:
    """Every table of a run by name, in the order of the report. ``samples`` (columns ``SAMPLE_COLUMNS``) are what
    batteries are counted from; ``composed`` says which names are batteries and ensembles, and of what;
    ``certified`` is ``certified_accuracy.parquet``, ``costs`` is ``costs.parquet``,
    ``measured`` is ``diagnostics.parquet``.
    """
    made = (
        robust_accuracy(metrics, cells, composed),
        batteries(metrics, cells, pd.DataFrame(columns=SAMPLE_COLUMNS) if samples is None else samples, composed),
        transfer(metrics, cells, composed),
        defenses(metrics, cells),
        defense_costs(cells, costs),
        realism(metrics, measured),
        shifts(metrics, cells),
        certificates(certified),
        diagnostics(metrics, composed),
        ood(metrics, cells, trivial),
        ood_sets(metrics, cells, trivial),
        ood_paired(metrics, cells),
        ood_defended(metrics, cells),
        checks(cells),
        failed(cells),
    )
    return {table.name: table for table in made}


__all__ = [
    "SAMPLE_COLUMNS", "all_tables", "batteries", "certificates", "checks", "checks_page", "defense_costs", "defenses",
    "diagnostics", "failed", "ood", "ood_defended", "ood_paired", "ood_sets", "realism", "robust_accuracy", "shifts",
    "transfer",
]  # fmt: skip
