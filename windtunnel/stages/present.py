"""Printed tables and figures of a run: reads the tables, hands frames to ``windtunnel.present``, writes the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from windtunnel import store
from windtunnel.catalogue import NONE
from windtunnel.plan import Cell, Plan
from windtunnel.present import names
from windtunnel.present.select import Composed
from windtunnel.stages import attack as attack_stage
from windtunnel.stages import images as image_stage
from windtunnel.stages import observe as observe_stage
from windtunnel.stages import purify as purify_stage
from windtunnel.stages.tables import trivial_rows

PRINTED = Path("results/tables/printed")
FIGURES = Path("results/figures")
PICTURES = 6


def write_tables(plan: Plan) -> None:
    """Every table as Markdown, CSV, LaTeX and HTML, and an index of them."""
    from windtunnel.present import render, tables

    metrics, cells = store.load("results", "metrics"), store.load("results", "cells")
    samples = store.load("results", "samples", tables.SAMPLE_COLUMNS)
    made = tables.all_tables(metrics, cells, trivial_rows(plan), samples=samples, composed=composed(plan))
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
        pictures(plan, samples),
        diagnostics=store.load("results", "diagnostics"),
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


def pictures(plan: Plan, samples: pd.DataFrame) -> list:
    """Samples for the gallery: clean-correct, one per class in order, from a fully driven bare attack and a defense.

    The attack shown is the run's largest linf budget up to 8/255 on an undefended model; the defense is the first that
    was
    judged on the same images without the attack knowing of it. The first samples by id are shown, not the prettiest.
    """
    from windtunnel.present.figures import Picture

    bare = _shown_attack(plan)
    if bare is None:
        return []
    defended = next(
        (
            w.cell
            for w in plan.cells
            if w.cell.attack == bare.attack and w.cell.defense != NONE and w.cell.model == bare.model
        ),
        None,
    )
    key = bare.attack
    if key is None:
        return []
    manifest = observe_stage.attacked_manifest(plan, bare)
    part = store.read_manifest(manifest)[attack_stage.key_name(key)]
    if part.status != "ok":
        return []
    attacked = attack_stage.unpack(store.part_table(manifest, part), "best")
    image_set = image_stage.read(plan, bare.images, bare.shift, plan.n_of(key))
    clean = purify_stage.nchw(image_set.images)
    rows = {c: _rows_of(plan, samples, c, image_set.sample_ids) for c in (bare, defended) if c is not None}
    plain = _rows_of(plan, samples, Cell(bare.images, bare.shift, bare.model, NONE, None, NONE), image_set.sample_ids)
    if plain is None or rows[bare] is None:
        return []
    chosen = _one_per_class(plain, np.asarray(image_set.labels))
    seen = None
    if defended is not None and rows[defended] is not None:
        from windtunnel.defenses.base import repeat

        method, rounds = purify_stage.build(plan, defended.defense)
        seen = repeat(method, attacked[chosen], rounds).images
    names_of = plan.catalogue.model(bare.model).entry.class_names

    def word(k: float) -> str:
        return "?" if pd.isna(k) else names_of[int(k)] if names_of else str(int(k))

    found = []
    for place, i in enumerate(chosen):
        after = rows[defended].iloc[i] if seen is not None and defended is not None else None
        found.append(
            Picture(
                clean=_hwc(clean[i]),
                adversarial=_hwc(attacked[i]),
                defended=_hwc(seen[place]) if seen is not None else None,
                label=word(image_set.labels[i]),
                clean_pred=word(plain.iloc[i]["pred"]),
                clean_conf=float(plain.iloc[i]["conf"]),
                adversarial_pred=word(rows[bare].iloc[i]["pred"]),
                adversarial_conf=float(rows[bare].iloc[i]["conf"]),
                defended_pred=word(after["pred"]) if after is not None else "",
                defended_conf=float(after["conf"]) if after is not None else float("nan"),
                left=f"{bare.model}\n{key.attack} {key.threat}" + (f"\n{defended.defense}" if defended else ""),
                under=f"linf {float(rows[bare].iloc[i]['linf']) * 255:.0f}/255",
                under_defended=_rate(after),
            )
        )
    return found


def _shown_attack(plan: Plan) -> Cell | None:
    """The cell whose images the gallery shows."""
    candidates = [
        w.cell
        for w in plan.cells
        if w.cell.attack is not None
        and w.cell.attack.mode == "full"
        and w.cell.attack.defense == NONE
        and w.cell.defense == NONE
        and w.cell.attack.model == w.cell.model
        and w.cell.iterate == "best"
        and plan.catalogue.threat(w.cell.attack.threat).norm == "linf"
        and plan.catalogue.threat(w.cell.attack.threat).budget <= 8 / 255 + 1e-9
    ]
    return max(candidates, key=lambda c: plan.catalogue.threat(c.attack.threat).budget, default=None)  # type: ignore[union-attr]


def _rows_of(plan: Plan, samples: pd.DataFrame, cell: Cell, sample_ids: list[str]) -> pd.DataFrame | None:
    wanted = {w.cell for w in plan.cells}
    if cell not in wanted:
        return None
    rows = samples[samples["cell_id"] == plan.cell_id(cell)].set_index("sample_id")
    return rows.loc[sample_ids] if set(sample_ids) <= set(rows.index) else None


def _one_per_class(plain: pd.DataFrame, labels: np.ndarray) -> list[int]:
    correct = plain["correct"].fillna(False).to_numpy(dtype=bool)
    firsts = [
        int(np.flatnonzero(correct & (labels == k))[0]) for k in np.unique(labels) if (correct & (labels == k)).any()
    ]
    return sorted(firsts)[:PICTURES]


def _rate(row: pd.Series | None) -> str:
    return f"{float(row['bpp_payload']):.2f} bpp" if row is not None and pd.notna(row["bpp_payload"]) else ""


def _hwc(image: np.ndarray) -> np.ndarray:
    return image.transpose(1, 2, 0)
