"""Transfer: which models are fooled by images made on another, or on an ensemble of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from windtunnel.present import style, words
from windtunnel.present.figures._curves import sizes
from windtunnel.present.select import SIMPLE, Composed, absent, first, is_transfer, only, threat_order, tidy
from windtunnel.present.tables_transfer import WHITE_BOX, mark, source_order, transfer_rows

TITLE = "Transfer between models"
MAX_PANELS = 6
KEYS = ["attack", "threat"]


@style.styled
def transfer(metrics: pd.DataFrame, composed: Composed = SIMPLE) -> Figure:
    """Accuracy of each undefended model (columns) on fully driven images made on each source (rows, ensembles below
    the line); a panel per attack and threat, those with most transferred cells first, all with the same rows and
    columns. A solid frame is the white box, a dashed one a model within the ensemble.
    """
    rows = only(transfer_rows(tidy(metrics)), defense="none")
    if rows.empty:
        return style.not_in_this_run(TITLE, "no model was judged on images made on another")
    sets = rows[is_transfer(rows)].groupby(["dataset", "split"]).size()
    dataset, split = min(sets.index, key=lambda k: (-sets[k], k))
    rows = only(rows, dataset=dataset, split=split)
    cells = rows[is_transfer(rows)].groupby(KEYS).size().to_dict()
    order = sorted(cells, key=lambda k: (-cells[k], k[0], tuple(-x if isinstance(x, float) else x for x in
    threat_order(k[1]))))  # fmt: skip
    shown = sorted(order[:MAX_PANELS], key=lambda k: (threat_order(k[1]), k[0]))
    rows = rows[[k in shown for k in zip(rows["attack"], rows["threat"], strict=True)]]
    sources = sorted({s for s in rows["source_model"]}, key=lambda s: source_order(composed, s))
    targets = sorted(set(rows["target"]))
    across = 2 if len(shown) > 1 and len(targets) <= 4 else 1
    lines = -(-len(shown) // across)
    width = style.WIDTH if across > 1 else min(style.WIDTH, 3.4 + 0.95 * len(targets))
    room = (width - 0.085 * max(map(len, sources))) / (across * len(targets))
    slanted = 0.075 * max(map(len, targets)) > room
    figure = style.new_figure(
        width=width,
        height=1.2 + lines * (0.45 + 0.47 * len(sources)),
    )
    panels = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True)
    for place, axes in enumerate(panels.ravel()):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        attack, threat = shown[place]
        _panel(axes, only(rows, attack=attack, threat=threat), sources, targets, composed)
        axes.set_title(f"{words.attack(attack)} at {words.threat(threat)}", fontsize=8.5)
    for axes in panels[:, 0]:
        axes.set_yticklabels(sources, rotation=0)
        axes.set_ylabel("made on")
    for place, axes in enumerate(panels.ravel()[: len(shown)]):
        last = place + across >= len(shown)
        axes.tick_params(labelbottom=last)
        if last:
            axes.set_xticklabels(targets, rotation=25 if slanted else 0, ha="right" if slanted else "center")
            axes.set_xlabel("judged model")
    frames = " Solid frame: white box." if (rows["source_model"] == rows["target"]).any() else ""
    inside = any(mark(composed, s, t) not in ("", WHITE_BOX) for s in sources for t in targets)
    frames += " Dashed frame: the judged model is in the ensemble." if inside else ""
    counts = {int(n) for n in rows["n"].dropna()}
    rest = f" The {len(shown)} of {len(order)} attacks and threats with most cells." if len(order) > len(shown) else ""
    style.heading(
        figure,
        "Accuracy on images made on another model (%)",
        f"{words.image_set(dataset, split)}, images driven to their end; {sizes(counts)}; "
        f"in brackets 95 % intervals over sources.{frames}{rest}",
    )
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, sources: list[str], targets: list[str], composed: Composed) -> None:
    values = np.full((len(sources), len(targets)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    frames: list[tuple[int, int, Any]] = []
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            row = first(rows, source_model=source, target=target)
            if row is None:
                continue
            values[i, j] = row["value"]
            texts[i, j] = f"{100 * row['value']:.0f}"
            if not absent(row["ci_low"]):
                texts[i, j] += f"\n[{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}]"
            note = mark(composed, source, target)
            if note:
                frames.append((i, j, "-" if note == WHITE_BOX else (0, (2.5, 1.5))))
    seaborn.heatmap(
        values, ax=axes, annot=texts, fmt="", cmap=style.SEQUENTIAL, vmin=0, vmax=1, cbar=False, linewidths=1,
        xticklabels=targets, yticklabels=sources, annot_kws={"fontsize": 7.5, "color": style.INK},
    )  # fmt: skip
    for i, j, dash in frames:
        axes.add_patch(Rectangle((j + 0.04, i + 0.06), 0.92, 0.88, fill=False, ec=style.INK, lw=1.0, ls=dash, zorder=5))
    singles = sum(s not in composed.ensembles for s in sources)
    if 0 < singles < len(sources):
        axes.axhline(singles, color=style.INK, lw=1.2)
    axes.tick_params(length=0)
    axes.grid(False)
