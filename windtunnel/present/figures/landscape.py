"""The loss around single images, summarised: how rough, how monotone, how often wrong."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present import words_diagnostics as meant
from windtunnel.present.figures._curves import sizes
from windtunnel.present.select import CLEAN, PLACE, UNWARPED, absent, diagnostic_rows, full_name, only, tidy

TITLE = "The loss landscape around single images"
METHOD = "landscape"
SHOWN = {
    "roughness": "roughness\n(0 = flat)",
    "monotonicity": "monotone along the gradient\n(1 = honest, 1/2 = useless)",
    "wrong_share_ball": "wrong within eps\n(share of the plane)",
}
MAX_ROWS = 14
PIPELINE = [*PLACE, "defense", "through"]


@style.styled
def landscape(metrics: pd.DataFrame, diagnostics: pd.DataFrame) -> Figure:
    """Per pipeline the spread over samples of three summaries of the margin on a plane around each image.

    Boxes are quartiles, whiskers the 5th and 95th percentile, the dot the mean with its 95 % interval (from the
    metrics). The planes themselves are not stored, so no slice is drawn. Of several measurements (image sets, budgets,
    settings) the one of most pipelines is shown, then the largest budget.
    """
    frame = tidy(diagnostics)
    frame = frame[[meant.method_of(str(d)) == METHOD for d in frame["diagnostic"]]] if len(frame) else frame
    frame = only(frame, quantity=tuple(SHOWN), shift=UNWARPED) if len(frame) else frame
    if frame.empty or not frame["value"].notna().any():
        return style.not_in_this_run(TITLE, "no landscape was measured")
    keys = ["dataset", "split", "threat", "diagnostic"]
    found = {k: (part.groupby(PIPELINE, dropna=False).ngroups, part["eps"].max()) for k, part in frame.groupby(keys)}
    chosen = dict(zip(keys, min(found, key=lambda k: (-found[k][0], -found[k][1], k)), strict=True))
    frame = only(frame, **chosen)
    means = only(diagnostic_rows(tidy(metrics)), **chosen)
    groups = [(key, part) for key, part in frame.groupby(PIPELINE, dropna=False, sort=True)]
    groups.sort(
        key=lambda g: (*map(str, g[0][:4]), g[0][4] not in ("", CLEAN), style.defense_order(g[0][4]), str(g[0][5]))
    )
    shown = groups[:MAX_ROWS]
    colours = style.model_colours(frame["model"])
    figure = style.new_figure(height=1.5 + 0.27 * len(shown))
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    counts: set[int] = set()
    for axes, (quantity, title) in zip(panels, SHOWN.items(), strict=True):
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
    panels[0].set_yticks(range(len(shown)), [_name(key) for key, _ in shown])
    rest = f" The first {len(shown)} of {len(groups)} pipelines." if len(groups) > len(shown) else ""
    style.heading(
        figure,
        TITLE,
        f"{words.image_set(chosen['dataset'], chosen['split'])}, {words.threat(chosen['threat'])}, plane of the "
        f"margin's gradient and random signs; clean-correct samples, {sizes(counts)}. Boxes: quartiles, whiskers 5 to "
        f"95 %; dots: means with 95 % intervals.{rest}",
    )
    return figure


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


def _name(key: tuple) -> str:
    _, _, model, seed, defense, through = key
    name = full_name(model, seed)
    return name if defense in ("", CLEAN) else f"{name}, {words.defense(defense)}\n({words.rule(through)})"
