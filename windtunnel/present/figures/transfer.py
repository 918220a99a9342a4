"""Transfer: which models are fooled by images made on another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present.select import (
    by_iterate,
    cell_rows,
    first,
    full_name,
    in_distribution,
    is_transfer,
    only,
    threat_order,
    tidy,
)

TITLE = "Transfer between models"


@style.styled
def transfer(metrics: pd.DataFrame) -> Figure:
    """Accuracy of each model (columns) on fully driven images made on each (rows); the diagonal is the white box.

    The threat and attack are those with most transferred cells, then the largest budget.
    """
    metrics = tidy(metrics)
    rows = in_distribution(cell_rows(metrics, "accuracy"))
    rows = only(rows, defense="none", attack_defense=("none", ""), mode="full")
    rows = rows[rows["source_model"] != ""]
    moved = rows[is_transfer(rows)]
    if moved.empty:
        return style.not_in_this_run(TITLE, "no model was judged on images made on another")
    keys = ["dataset", "split", "attack", "threat"]
    sizes = moved.groupby(keys).size().to_dict()
    chosen = dict(zip(keys, min(sizes, key=lambda k: (-sizes[k], tuple(-x if isinstance(x, float) else x for x in
    threat_order(k[3])), k)), strict=True))  # fmt: skip
    rows = by_iterate(only(rows, **chosen))
    rows = rows.assign(target=[full_name(m, s) for m, s in zip(rows["model"], rows["model_seed"], strict=True)])
    moved = rows[is_transfer(rows)]
    sources = sorted(set(moved["source_model"]))
    targets = sorted(set(moved["target"]) | {t for t in rows["target"] if t in sources})
    values = np.full((len(sources), len(targets)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            row = first(rows, source_model=source, target=target)
            if row is not None:
                values[i, j] = row["value"]
                texts[i, j] = f"{100 * row['value']:.0f}\n[{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}]"
    figure = style.new_figure(width=min(style.WIDTH, 3.4 + 0.95 * len(targets)), height=1.35 + 0.55 * len(sources))
    axes = figure.subplots()
    seaborn.heatmap(values, ax=axes, annot=texts, fmt="", cmap=style.SEQUENTIAL, vmin=0, vmax=1, cbar=False,
    linewidths=1, xticklabels=targets, yticklabels=sources,
                    annot_kws={"fontsize": 7.5, "color": style.INK})  # fmt: skip
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_xlabel("judged model")
    axes.set_ylabel("made on")
    axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
    axes.set_xticklabels(targets, rotation=0 if len(targets) <= 5 else 25)
    style.heading(
        figure,
        "Accuracy on images made on another model (%)",
        f"{words.image_set(chosen['dataset'], chosen['split'])}, {words.attack(chosen['attack'])} at "
        f"{words.threat(chosen['threat'])}, driven to its end; n = {int(rows['n'].min())}; 95 % intervals.",
    )
    return figure
