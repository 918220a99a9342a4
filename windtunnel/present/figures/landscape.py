"""The loss around single images: slices through the margin, and how rough, how monotone, how often wrong they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Circle, Patch, Polygon, Rectangle

from windtunnel.present import style, words
from windtunnel.present import words_diagnostics as meant
from windtunnel.present.figures._curves import sizes
from windtunnel.present.select import CLEAN, PLACE, UNWARPED, absent, diagnostic_rows, full_name, only, tidy

TITLE = "The loss landscape around single images"
METHOD = "landscape"
SHOWN = {
    "roughness": "roughness\n(0 = flat)",
    "monotonicity": "monotone along the gradient\n(1 = honest, 1/2 = useless)",
    "wrong_share_ball": "wrong in the ±ε square\n(share of its places)",
}
MAX_ROWS, MAX_SLICES, SINGLES = 14, 6, 2
PIPELINE = [*PLACE, "defense", "through"]
SLICE = re.compile(r"slice_(\d+)_(\d+)")
SIDES = seaborn.blend_palette([style.BLUE, "#ffffff", style.VERMILION], as_cmap=True)
CLIPPED = 0.98
"""The colour scale ends at this quantile of |margin| over all slices shown: a few extremes must not pale the rest."""

Key = tuple


@dataclass(frozen=True)
class Slices:
    """Slices of one pipeline: ``m`` [n, G, G] (row = along the gradient, from -span to span) by ``ids``, and span."""

    ids: tuple[str, ...]
    m: np.ndarray
    span: float


@style.styled
def landscape(metrics: pd.DataFrame, diagnostics: pd.DataFrame) -> Figure:
    """Per pipeline slices of the margin (mean over samples, two single ones), below the spread of three summaries.

    The single samples are the first two by id that every pipeline shown classifies correctly: not chosen for their
    looks, and the same in every row. All slices share one colour scale around 0. Boxes are quartiles, whiskers the 5th
    and 95th percentile, the dot the mean with its 95 % interval (from the metrics). Of several measurements (image
    sets, budgets, settings) the one of most pipelines is shown, then the largest budget.
    """
    frame = tidy(diagnostics)
    frame = frame[[meant.method_of(str(d)) == METHOD for d in frame["diagnostic"]]] if len(frame) else frame
    frame = only(frame, shift=UNWARPED) if len(frame) else frame
    summaries = only(frame, quantity=tuple(SHOWN)) if len(frame) else frame
    if summaries.empty or not summaries["value"].notna().any():
        return style.not_in_this_run(TITLE, "no landscape was measured")
    keys = ["dataset", "split", "threat", "diagnostic"]
    found = {k: (p.groupby(PIPELINE, dropna=False).ngroups, p["eps"].max()) for k, p in summaries.groupby(keys)}
    chosen = dict(zip(keys, min(found, key=lambda k: (-found[k][0], -found[k][1], k)), strict=True))
    frame = only(frame, **chosen)
    means = only(diagnostic_rows(tidy(metrics)), **chosen)
    groups = [(key, part) for key, part in frame.groupby(PIPELINE, dropna=False, sort=True)]
    groups.sort(
        key=lambda g: (*map(str, g[0][:4]), g[0][4] not in ("", CLEAN), style.defense_order(g[0][4]), str(g[0][5]))
    )
    shown = groups[:MAX_ROWS]
    slices = {key: _slices(part) for key, part in shown[:MAX_SLICES]}
    slices = {key: found for key, found in slices.items() if found is not None}
    low = 0.75 + (0.34 if any("\n" in _name(key) for key, _ in shown) else 0.27) * len(shown)
    high = 0.35 + 1.6 * len(slices) if slices else 0.0
    figure = style.new_figure(height=1.05 + low + high)
    parts = figure.add_gridspec(2 if slices else 1, 1, height_ratios=[high, low] if slices else [low])
    norm = str(frame["norm"].iloc[0])
    if slices:
        singles = _draw_slices(figure, parts[0], slices, norm)
    counts = _draw_spread(figure, parts[-1], shown, means)
    sides = "random signs" if norm == "linf" else "a random direction"
    text = (
        f"{words.image_set(chosen['dataset'], chosen['split'])}, {words.threat(chosen['threat'])}, plane of the "
        f"margin's gradient and {sides} through the image; clean-correct samples, {sizes(counts)}. "
    )
    if slices:
        text += (
            "Slices: margin, orange = misclassified, line = 0; dashed: one ε along each axis, dotted: the ball itself. "
            "Mean over samples" + (f", and the first {singles} that every row gets right. " if singles else ". ")
        )
    text += "Boxes: quartiles, whiskers 5 to 95 %; dots: means with 95 % intervals."
    rest = f" The first {len(shown)} of {len(groups)} pipelines." if len(groups) > len(shown) else ""
    rest += f" Slices of the first {len(slices)}." if 0 < len(slices) < len(shown) else ""
    style.heading(figure, TITLE, text + rest)
    _settle(figure)
    return figure


def _settle(figure: Figure) -> None:
    """Lay out now and round the places: with this many panels the solver's last bits differ between two drawings of
    equal data, and an SVG names its clipping paths after them."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position(np.round(axes.get_position(original=True).bounds, 4))


# --------------------------------------------------------------------------------------------------------------- slices


def _slices(part: pd.DataFrame) -> Slices | None:
    """The slices of the samples that have one whole; None without any."""
    wide = part[part["quantity"].str.startswith("slice_")]
    if wide.empty:
        return None
    wide = wide.pivot(index="sample_id", columns="quantity", values="value").astype(float).sort_index()
    wide = wide[np.isfinite(wide).all(axis=1)]
    places = {name: tuple(map(int, m.groups())) for name in wide.columns if (m := SLICE.fullmatch(name))}
    if wide.empty or not places or "slice_span" not in wide:
        return None
    points = 1 + max(max(place) for place in places.values())
    m = np.full((len(wide), points, points), np.nan)
    for name, (row, column) in places.items():
        m[:, row, column] = wide[name]
    return Slices(tuple(map(str, wide.index)), m, float(wide["slice_span"].iloc[0]))


def _draw_slices(figure: Figure, spot: SubplotSpec, slices: Mapping[Key, Slices], norm: str) -> int:
    """The panels of slices; returns how many single samples all pipelines have (at most ``SINGLES``)."""
    common = sorted(set.intersection(*(set(found.ids) for found in slices.values())))[:SINGLES]
    planes = {
        key: [found.m.mean(axis=0), *(found.m[found.ids.index(one)] for one in common)] for key, found in slices.items()
    }
    limit = float(np.quantile(np.abs([plane for row in planes.values() for plane in row]), CLIPPED)) or 1.0
    grid = spot.subgridspec(len(slices), 2 + SINGLES, width_ratios=[0.8, *[1.0] * (1 + SINGLES)])
    panels: list[Axes] = []
    for row, (key, drawn) in enumerate(planes.items()):
        label = figure.add_subplot(grid[row, 0])
        label.set_axis_off()
        text = f"{_name(key, wrapped=True)}\n\nmean of {len(slices[key].ids)}"
        label.text(0.0, 0.5, text, va="center", ha="left", fontsize=8, transform=label.transAxes)
        for column, plane in enumerate(drawn):
            axes = figure.add_subplot(grid[row, 1 + column])
            mesh = _slice(axes, plane, slices[key].span, limit, norm)
            axes.tick_params(labelleft=column == 0, labelbottom=row == len(planes) - 1)
            if row == 0:
                axes.set_title("mean" if column == 0 else common[column - 1], fontsize=8.5, loc="center")
            if column == 0:
                axes.set_ylabel("ε along the gradient", fontsize=7.5)
            if row == len(planes) - 1:
                axes.set_xlabel("ε aside", fontsize=7.5)
            panels.append(axes)
    bar = figure.colorbar(mesh, ax=panels, extend="both", shrink=min(1.0, 0.5 + 0.5 / len(planes)), pad=0.02, aspect=24)
    bar.set_label("margin", fontsize=7.5)
    bar.outline.set_visible(False)
    return len(common)


def _slice(axes: Axes, plane: np.ndarray, span: float, limit: float, norm: str) -> QuadMesh:
    places = np.linspace(-span, span, len(plane))
    mesh = axes.pcolormesh(
        places, places, plane, cmap=SIDES, vmin=-limit, vmax=limit, shading="nearest", edgecolors="face", lw=0.2
    )
    if plane.min() < 0 < plane.max():
        axes.contour(places, places, plane, levels=[0.0], colors=[style.INK], linewidths=1.3)
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, ec=style.INK, lw=0.8, ls=(0, (3, 2))))
    ball: Patch = Circle((0, 0), 1) if norm == "l2" else Polygon([(1, 0), (0, 1), (-1, 0), (0, -1)])
    ball.set(fill=False, ec=style.INK, lw=0.8, ls=(0, (1, 1.5)))
    axes.add_patch(ball)
    axes.plot(0, 0, "+", color=style.INK, ms=4, mew=0.8)
    axes.set_aspect("equal")
    ticks = [t for t in range(-int(span), int(span) + 1) if t % max(1, int(span) // 2) == 0]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.grid(False)
    axes.tick_params(length=2, labelsize=7)
    return mesh


# --------------------------------------------------------------------------------------------------------------- spread


def _draw_spread(
    figure: Figure, spot: SubplotSpec, shown: Sequence[tuple[Key, pd.DataFrame]], means: pd.DataFrame
) -> set[int]:
    """The panels of boxes; returns how many samples the boxes are of."""
    grid = spot.subgridspec(1, len(SHOWN))
    colours = style.model_colours([key[2] for key, _ in shown])
    counts: set[int] = set()
    panels: list[Axes] = []
    for column, (quantity, title) in enumerate(SHOWN.items()):
        axes = figure.add_subplot(grid[0, column], sharey=panels[0] if panels else None)
        for row, (key, part) in enumerate(shown):
            place = {k: (None if absent(v) else v) for k, v in zip(PIPELINE, key, strict=True)}
            values = only(part, quantity=quantity)["value"].dropna().to_numpy(float)
            if len(values):
                _box(axes, row, values, colours[place["model"]])
                counts.add(len(values))
            _mean(axes, row, only(means, quantity=quantity, **place))
        axes.set_title(title, fontsize=8.5)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        axes.set_xlim(left=0, right=None if quantity == "roughness" else 1.02)
        axes.tick_params(labelleft=column == 0)
        panels.append(axes)
    panels[0].set_yticks(range(len(shown)), [_name(key) for key, _ in shown])
    return counts


def _box(axes: Axes, row: int, values: np.ndarray, colour: str) -> None:
    low, first, middle, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    axes.hlines(row, low, high, color=colour, lw=1.0, zorder=2)
    axes.barh(row, third - first, left=first, height=0.56, color=colour, alpha=0.35, lw=0, zorder=2)
    axes.vlines(middle, row - 0.28, row + 0.28, color=colour, lw=1.6, zorder=3)


def _mean(axes: Axes, row: int, means: pd.DataFrame) -> None:
    if means.empty or absent(means.iloc[0]["value"]):
        return
    found = means.iloc[0]
    if not absent(found["ci_low"]):
        axes.hlines(row, found["ci_low"], found["ci_high"], color=style.INK, lw=1.6, zorder=4)
    axes.plot(found["value"], row, "o", color=style.INK, ms=3.5, zorder=5)


def _name(key: Key, *, wrapped: bool = False) -> str:
    _, _, model, seed, defense, through = key
    name = full_name(model, seed)
    if defense in ("", CLEAN):
        return name
    lines = (f"{name},", words.defense(defense)) if wrapped else (f"{name}, {words.defense(defense)}",)
    rule = f"({words.rule(through)})"
    return "\n".join((*lines, rule.replace(", ", ",\n") if wrapped else rule))
