"""Certified accuracy against the L2 radius: what randomised smoothing guarantees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.figures._curves import share_curve, sizes
from windtunnel.present.select import CLEAN, absent, full_name, only, tidy
from windtunnel.store import CERTIFIED_FIELDS

TITLE = "Certified accuracy against the radius"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
CURVE = ["model", "model_seed", "defense"]
PER_ROW = 3


@style.styled
def certified_against_radius(certified: pd.DataFrame | None) -> Figure:
    """Share of samples certified as their own class with at least each radius; a panel per sigma, a curve per model
    (colour) and denoiser (dash), with 95 % bands.

    From ``certified.parquet``, so the steps are the samples' own. The grey mark is the largest radius that the draws,
    alpha and sigma allow: a curve that stands high there and falls to 0 ends for want of draws, not of robustness. Of
    several procedures for one curve the fixed one with most draws is drawn; the table has all.
    """
    rows = tidy(pd.DataFrame(columns=[n for n, _ in CERTIFIED_FIELDS]) if certified is None else certified)
    if rows.empty:
        return style.not_in_this_run(TITLE, "no smoothed classifier was certified")
    sets = rows.groupby(["dataset", "split"]).size()
    dataset, split = min(sets.index, key=lambda k: (-sets[k], k))
    rows = only(rows, dataset=dataset, split=split)
    sigmas = sorted(set(rows["sigma"]))
    colours = style.model_colours(rows["model"])
    dashes = {d: DASHES[i % len(DASHES)] for i, d in enumerate(_denoisers(rows))}
    deep, wide = -(-len(sigmas) // PER_ROW), min(len(sigmas), PER_ROW)
    figure = style.new_figure(height=1.1 + 2.3 * deep)
    panels = figure.subplots(deep, wide, sharey=True, squeeze=False)
    counts: set[int] = set()
    procedures: set[str] = set()
    for place, axes in enumerate(panels.flat):
        if place >= len(sigmas):
            axes.set_visible(False)
            continue
        part, marks = only(rows, sigma=sigmas[place]), set()
        for key, curve in part.groupby(CURVE, dropna=False, sort=True):
            at = dict(zip(CURVE, key, strict=True))
            chosen = _one_procedure(curve)
            marks.add(_curve(axes, chosen, colours[at["model"]], dashes[at["defense"]]))
            counts.add(len(chosen))
            procedures.add(_procedure(chosen))
        _frame(axes, sigmas[place], sorted(m for m in marks if m is not None), place % PER_ROW == 0)
    _legend(figure, rows, colours, dashes)
    style.heading(
        figure,
        TITLE,
        f"{words.image_set(dataset, split)}, {sizes(counts)}, {'; '.join(sorted(procedures))}; 95 % bands over "
        "sources. Share of all samples, abstaining is wrong. Grey: the largest radius that these draws can certify.",
    )
    return figure


def _denoisers(rows: pd.DataFrame) -> list[str]:
    return sorted(set(rows["defense"]), key=lambda d: (d != CLEAN, style.defense_order(d)))


def _one_procedure(rows: pd.DataFrame) -> pd.DataFrame:
    """The fixed procedure before the sequential one, then most draws, then the smallest alpha."""
    keys = ["mode", "draws", "alpha", "choose_draws"]
    best = min(
        rows[keys].drop_duplicates().itertuples(index=False),
        key=lambda k: (k.mode != "fixed", -k.draws, k.alpha, -k.choose_draws),
    )
    chosen = rows[(rows[keys] == pd.Series(best._asdict())).all(axis=1)]
    looks = [tuple(found) for found in chosen["looks"]]
    return chosen[[found == min(looks) for found in looks]]


def _procedure(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    text = f"{int(row['choose_draws'])}\u00a0+\u00a0{int(row['draws'])} draws, α\u00a0{row['alpha']:g}"
    return text if row["mode"] == "fixed" else f"{text}, looks after {', '.join(str(int(n)) for n in row['looks'])}"


def _curve(axes: Axes, rows: pd.DataFrame, colour: str, dash: Any) -> float | None:
    """One curve; returns the largest radius that its draws allow."""
    radius = np.where(rows["correct"].to_numpy(dtype=bool), rows["radius"].to_numpy(dtype=float), -1.0)
    largest = None if absent(rows["largest_radius"].iloc[0]) else float(rows["largest_radius"].iloc[0])
    sources = rows["source_id"].where(rows["source_id"].notna(), rows["sample_id"]).to_numpy(object)
    places = np.unique(np.concatenate([[0.0], radius[radius > 0], [largest or 0.0]]))
    # certified at r means a radius of at least r, so the sample at a place still counts there
    value, low, high = share_curve(np.nextafter(radius, np.inf), places, sources)
    x, y = np.append(places, places[-1]), np.append(value, 0.0)
    axes.step(x, y, where="pre", color=colour, linestyle=dash, lw=1.5, zorder=3)
    axes.fill_between(places, low, high, step="pre", color=colour, alpha=0.12, lw=0)
    return largest


def _frame(axes: Axes, sigma: float, marks: list[float], leftmost: bool) -> None:
    for mark in marks:
        axes.axvline(mark, color=style.FAINT, lw=2.2, zorder=1)
    axes.set_xlim(left=0, right=1.06 * max(marks) if marks else sigma)
    style.percent_axis(axes)
    axes.set_title(f"σ = {sigma:g}", fontsize=8.5)
    axes.set_xlabel("L2 radius")
    if leftmost:
        axes.set_ylabel("certified accuracy")


def _legend(figure: Figure, rows: pd.DataFrame, colours: dict[str, str], dashes: dict[str, Any]) -> None:
    names: dict[str, str] = {}
    for _, row in rows[["model", "model_seed"]].drop_duplicates().sort_values(["model", "model_seed"]).iterrows():
        names[full_name(row["model"], row["model_seed"])] = colours[row["model"]]
    handles = [Line2D([], [], color=colour, lw=1.8, label=name) for name, colour in names.items()]
    if set(dashes) != {CLEAN}:
        for defense, dash in dashes.items():
            label = "no denoiser" if defense == CLEAN else words.defense(defense)
            handles.append(Line2D([], [], color=style.MUTED, linestyle=dash, lw=1.5, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
