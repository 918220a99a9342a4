"""Robust accuracy against what was spent: how fast each attack breaks what it breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from windtunnel.present import style, words
from windtunnel.present.figures._curves import share_curve, sizes
from windtunnel.present.select import CLEAN, SIMPLE, Composed, full_name, threat_order
from windtunnel.present.tables_batteries import PIPELINE, own_attacks

TITLE = "Robust accuracy against gradient evaluations"
MAX_PANELS = 6


@style.styled
def convergence(samples: pd.DataFrame, composed: Composed = SIMPLE) -> Figure:
    """Share of all samples that is right and not yet broken after k gradient evaluations on it; a line per attack.

    From ``search`` cells on the attacked pipeline: there a broken sample leaves, so that its ``n_backward`` is what it
    took. A sample that is wrong clean cost nothing and is lost from the start; one that survives (as stored) stays. The
    line ends where the longest-lived sample stopped. Gradient-free attacks have no place on this axis. A panel per
    pipeline and threat, those with most attacks first.
    """
    rows = own_attacks(samples)
    rows = rows[(rows["mode"] == "search") & rows["correct"].notna()]
    rows = rows[rows.groupby("cell_id")["n_backward"].transform("max") > 0] if len(rows) else rows
    if rows.empty:
        return style.not_in_this_run(TITLE, "no gradient attack in mode search on the pipeline that it attacked")
    groups = [(key, part) for key, part in rows.groupby(PIPELINE, dropna=False, sort=True)]
    groups.sort(key=lambda g: (-g[1]["attack"].nunique(), *map(str, g[0][:4]), threat_order(g[0][4]), str(g[0][5:])))
    shown = groups[:MAX_PANELS]
    attacks = sorted({a for _, part in shown for a in part["attack"]}, key=lambda a: (a not in composed.batteries, a))
    colours, markers = style.attack_colours(attacks), style.attack_markers(attacks)
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = style.new_figure(height=1.35 + 2.15 * lines + 0.17 * (-(-len(attacks) // 3)))
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
    counts: set[int] = set()
    for axes, (key, part) in zip(panels, shown, strict=False):
        for attack in [a for a in attacks if a in set(part["attack"])]:
            mine = part[part["attack"] == attack]
            mine = mine[mine["cell_id"] == mine.sort_values(["attack_seed", "cell_id"])["cell_id"].iloc[0]]
            _line(axes, mine, colours[attack], markers[attack], 2.0 if attack in composed.batteries else 1.2)
            counts.add(len(mine))
        _dress(axes, dict(zip(PIPELINE, key, strict=True)))
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel("right and not yet broken")
    style.percent_axis(panels[0])
    figure.legend(
        handles=[
            Line2D([], [], color=colours[a], marker=markers[a], lw=2.0 if a in composed.batteries else 1.2,
                   label=words.attack(a))
            for a in attacks
        ],
        loc="outside lower center", ncols=min(3, len(attacks)),
    )  # fmt: skip
    rest = (
        f" The {len(shown)} of {len(groups)} pipelines and threats with most attacks." if groups[len(shown) :] else ""
    )
    style.heading(
        figure,
        TITLE,
        f"What a sample took until it was broken, counted in backward passes through one model; {sizes(counts)}, 95 % "
        f"bands over sources; batteries drawn thick.{rest}",
    )
    return figure


def _line(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, width: float) -> None:
    spent = rows["n_backward"].fillna(0).to_numpy(float)
    drops = np.where(rows["correct"].to_numpy(dtype=bool), np.inf, spent)
    end = max(1.0, spent.max())
    # a broken sample counts as robust before its last gradient: the curve steps down at every k at which one falls
    places = np.unique(np.concatenate([[0.5], drops[np.isfinite(drops) & (drops >= 0.5)], [end]]))
    value, low, high = share_curve(drops, places, rows["source_id"].to_numpy(object))
    axes.step(places, value, where="post", color=colour, lw=width, zorder=3)
    axes.fill_between(places, low, high, step="post", color=colour, alpha=0.1, lw=0)
    axes.plot(places[-1:], value[-1:], color=colour, marker=marker, zorder=4)


def _dress(axes: Axes, place: dict[str, Any]) -> None:
    name = full_name(place["model"], place["model_seed"])
    if place["defense"] not in ("", CLEAN):
        name += f" behind {words.defense(place['defense'])}\n({words.rule(place['through'])})"
    axes.set_title(f"{name}, {words.threat(place['threat'])}", fontsize=8.5)
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)
    axes.set_xlabel("gradient evaluations of a sample")
    if axes.get_xlim()[1] < 100:
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
