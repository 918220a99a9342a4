"""Printed tables and figures of a run: reads the tables, hands frames to ``windtunnel.present``, writes the files."""

from __future__ import annotations

from pathlib import Path

from windtunnel import store
from windtunnel.plan import Plan
from windtunnel.present import names
from windtunnel.present.select import Composed
from windtunnel.stages import pictures
from windtunnel.stages.tables import trivial_rows

PRINTED = Path("results/tables/printed")
FIGURES = Path("results/figures")


def write_tables(plan: Plan) -> None:
    """Every table as Markdown, CSV, LaTeX and HTML, and an index of them."""
    from windtunnel.present import render, tables

    metrics, cells = store.load("results", "metrics"), store.load("results", "cells")
    samples = store.load("results", "samples", tables.SAMPLE_COLUMNS)
    made = tables.all_tables(
        metrics,
        cells,
        trivial_rows(plan),
        samples=samples,
        composed=composed(plan),
        certified=store.load("results", "certified_accuracy"),
        costs=store.load("results", "costs"),
        measured=store.load("results", "diagnostics"),
    )
    written = render.write_tables(PRINTED, made)
    store.write_json(PRINTED / "index.json", {"run": plan.run.name, "files": sorted({p.name for p in written})})


def write_figures(plan: Plan) -> None:
    """Every figure as SVG and PNG."""
    from windtunnel.present import figures, render

    metrics, cells = store.load("results", "metrics"), store.load("results", "cells")
    samples = store.load("results", "samples")
    made = figures.all_figures(
        samples,
        metrics,
        cells,
        pictures.attacked(plan, samples),
        defended=pictures.defended(plan, samples),
        diagnostics=store.load("results", "diagnostics"),
        certified=store.load("results", "certified"),
        composed=composed(plan),
    )
    missing = set(names.FIGURE_NAMES) ^ set(made)
    if missing:
        raise store.StoreError(f"windtunnel/present/names.py and the figures disagree about {sorted(missing)}")
    render.write_figures(FIGURES, made)


def composed(plan: Plan) -> Composed:
    """What the catalogue knows of the run's names: members of batteries and ensembles, nearest-image attacks."""
    keys = {w.cell.attack for w in plan.cells if w.cell.attack is not None}
    attacks = {name: plan.catalogue.attack(name) for name in sorted({k.attack for k in keys})}
    sources = {name: plan.catalogue.members(name) for name in sorted({k.model for k in keys})}
    measured = {k.diagnostic for found in plan.diagnostic_jobs.values() for k in found}
    return Composed(
        batteries={n: tuple(m.name for m in a.members) for n, a in attacks.items() if len(a.members) > 1},
        ensembles={n: tuple(members) for n, members in sources.items() if len(members) > 1},
        diagnostics={n: plan.catalogue.diagnostic(n)[0].label for n in sorted(measured)},
        nearest=frozenset(n for n, a in attacks.items() if all(m.constant("minimal_norm", False) for m in a.members)),
    )
