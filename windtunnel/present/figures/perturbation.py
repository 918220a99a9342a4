"""How small a perturbation suffices: the share of samples with an adversarial image found within a distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from windtunnel.present import style, words
from windtunnel.present import words_diagnostics as meant
from windtunnel.present.figures._curves import share_curve, sizes
from windtunnel.present.select import (
    CLEAN,
    PLACE,
    SIMPLE,
    UNWARPED,
    Composed,
    absent,
    full_name,
    only,
    tidy,
    worst_rows,
)
from windtunnel.present.tables_batteries import own_attacks

TITLE = "How small a perturbation suffices"
METHOD = "min_perturbation"
LABELS = {"linf": "L∞ distance (of 255)", "l2": "L2 distance"}
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
KEYS = [*PLACE, "norm", "method"]
PLACES = 200


@style.styled
def perturbation(
    samples: pd.DataFrame, metrics: pd.DataFrame, diagnostics: pd.DataFrame, composed: Composed = SIMPLE
) -> Figure:
    """Share of all samples with an adversarial image found within each distance; a line per undefended model.

    From the diagnostic ``min_perturbation`` (largest budget measured) and from fully driven cells of attacks that look
    for the nearest image (largest budget attacked). Wrong on the clean image counts as distance 0. A line ends where
    it stops being known: an attack's at its budget, the diagnostic's at the largest distance found. Circles: what every
    attack of the run together broke at fixed budgets, with 95 % intervals; a point above its line says that the search
    for small perturbations missed some.
    """
    rows = pd.concat([_measured(diagnostics), _attacked(samples, composed)], ignore_index=True)
    if rows.empty:
        return style.not_in_this_run(TITLE, "no smallest perturbation was looked for on an undefended model")
    sets = rows.groupby(["dataset", "split"]).size()
    dataset, split = min(sets.index, key=lambda k: (-sets[k], k))
    rows = only(rows, dataset=dataset, split=split)
    norms = [n for n in LABELS if n in set(rows["norm"])]
    methods = sorted(set(rows["method"]), key=lambda m: (meant.method_of(m) != METHOD, m))
    dashes = {m: DASHES[i % len(DASHES)] for i, m in enumerate(methods)}
    colours, markers = style.model_colours(rows["model"]), style.model_markers(rows["model"])
    fixed = only(worst_rows(tidy(metrics)), dataset=dataset, split=split)
    figure = style.new_figure(height=3.5)
    panels = figure.subplots(1, len(norms), sharey=True, squeeze=False)[0]
    counts: set[int] = set()
    for axes, norm in zip(panels, norms, strict=True):
        labels: dict[str, tuple[float, str, str]] = {}
        part, scale, end = only(rows, norm=norm), 255.0 if norm == "linf" else 1.0, 0.0
        for key, line in part.groupby(KEYS, dropna=False, sort=True):
            at = dict(zip(KEYS, key, strict=True))
            x, value = _line(axes, line, scale, colours[at["model"]], dashes[at["method"]])
            name = full_name(at["model"], at["model_seed"])
            end = max(end, x)
            labels[name] = (max(value, labels.get(name, (0.0,))[0]), name, colours[at["model"]])
            counts.add(len(line))
        for key, _ in part.groupby(PLACE, dropna=False, sort=True):
            place = {k: (None if absent(v) else v) for k, v in zip(PLACE, key, strict=True)}
            points = only(fixed, **place)
            points = points[points["threat"].str.startswith(f"{norm}-") & (points["eps"] * scale <= end)]
            _points(axes, points, scale, colours[place["model"]], markers[place["model"]])
        axes.set_xlim(left=0, right=end * 1.03)
        axes.set_xlabel(LABELS[norm])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=norm == "linf"))
        if axes is panels[0]:
            style.percent_axis(axes)
            axes.set_ylabel("fooled within this distance")
        style.label_ends(axes, list(labels.values()), gap=0.07)
    _legend(figure, dashes, bool(len(fixed)))
    style.heading(
        figure,
        TITLE,
        f"{words.image_set(dataset, split)}, undefended models; share of all samples, wrong on the clean image counts "
        f"as distance 0; {sizes(counts)}, 95 % bands over sources. Distances are of images found: the truth may be "
        "smaller.",
    )
    return figure


def _measured(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """One row per sample: ``distance`` (infinite where nothing was found) and ``known``, up to where that says much."""
    frame = tidy(diagnostics)
    frame = frame[[meant.method_of(str(d)) == METHOD for d in frame["diagnostic"]]] if len(frame) else frame
    frame = only(frame, defense=("", CLEAN), shift=UNWARPED) if len(frame) else frame
    found = []
    keys = [*PLACE, "norm", "diagnostic"]
    for key, part in frame.groupby(keys, dropna=False, sort=True) if len(frame) else ():
        part = part[part["eps"] == part["eps"].max()]
        part = part.assign(source_id=part["source_id"].where(part["source_id"].notna(), part["sample_id"]))
        wide = part.set_index(["sample_id", "source_id", "quantity"])["value"].unstack("quantity")
        wide = wide.reindex(columns=["distance", "found"]).reset_index()
        distance = wide["distance"].to_numpy(float)
        # 'found' is null for a sample that is wrong on the clean image, 0 where the search came back empty
        distance = np.where(
            np.isnan(wide["found"].to_numpy(float)), 0.0, np.where(np.isnan(distance), np.inf, distance)
        )
        known = distance[np.isfinite(distance)].max(initial=0.0)
        columns = dict(zip(keys, key, strict=True)) | {"method": key[-1], "distance": distance, "known": known}
        found.append(pd.DataFrame({"source_id": wide["source_id"], **columns}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*KEYS, "distance", "known"])


def _attacked(samples: pd.DataFrame, composed: Composed) -> pd.DataFrame:
    rows = own_attacks(samples)
    rows = rows[rows["attack"].isin(sorted(composed.nearest)) & (rows["mode"] == "full") & rows["correct"].notna()]
    rows = only(rows, defense=("", CLEAN))
    found = []
    for (*_, norm, attack), part in rows.groupby([*PLACE, "norm", "attack"], dropna=False, sort=True):
        part = part[part["eps"] == part["eps"].max()]
        part = part[part["attack_seed"] == part["attack_seed"].min()]
        distance = part[str(norm)].to_numpy(float)
        distance = np.where(part["correct"].to_numpy(dtype=bool) | np.isnan(distance), np.inf, distance)
        columns = part[[*PLACE, "norm", "source_id"]].assign(method=attack, distance=distance, known=part["eps"])
        found.append(columns)
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*KEYS, "distance", "known"])


def _line(axes: Axes, rows: pd.DataFrame, scale: float, colour: str, dash: Any) -> tuple[float, float]:
    distance, known = rows["distance"].to_numpy(float), float(rows["known"].iloc[0])
    places = np.unique(np.concatenate([[0.0], distance[np.isfinite(distance)], [known]]))
    if len(places) > PLACES:
        places = np.unique(np.quantile(places, np.linspace(0, 1, PLACES), method="nearest"))
    left, low, high = share_curve(distance, places, rows["source_id"].to_numpy(object))
    axes.step(places * scale, 1 - left, where="post", color=colour, linestyle=dash, lw=1.5, zorder=3)
    axes.fill_between(places * scale, 1 - high, 1 - low, step="post", color=colour, alpha=0.12, lw=0)
    return known * scale, float(1 - left[-1])


def _points(axes: Axes, points: pd.DataFrame, scale: float, colour: str, marker: str) -> None:
    for _, row in points.iterrows():
        value, ends = 1 - float(row["value"]), None
        if not absent(row["ci_low"]):
            ends = [[max(0.0, row["ci_high"] - row["value"])], [max(0.0, row["value"] - row["ci_low"])]]
        axes.errorbar(
            float(row["eps"]) * scale,
            value,
            ends,
            color=colour,
            marker=marker,
            mfc="white",
            ms=5,
            elinewidth=0.9,
            zorder=4,
        )


def _legend(figure: Figure, dashes: dict[str, Any], points: bool) -> None:
    handles = [
        Line2D([], [], color=style.MUTED, linestyle=dash, lw=1.5, label=_name(method))
        for method, dash in dashes.items()
    ]
    if points:
        handles.append(
            Line2D([], [], color=style.MUTED, marker="o", mfc="white", lw=0, label="all attacks at a fixed budget")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))


def _name(method: str) -> str:
    return "bisection over the budget" if meant.method_of(method) == METHOD else words.attack(method)
