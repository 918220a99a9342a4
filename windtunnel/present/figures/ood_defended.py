"""Purification x OOD as a heat map: what a defense does to the detector behind it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present.select import absent, first, full_name, only
from windtunnel.present.style import defense_order
from windtunnel.present.tables_ood import ood_defended_rows, score_order

TITLE = "Out-of-distribution detection behind a defense"
ROLES = {"near_ood": "near mean", "far_ood": "far mean"}
MAX_MODELS = 3


@style.styled
def ood_defended(metrics: pd.DataFrame) -> Figure:
    """AUROC, score x defense, panels near and far, a row of panels per model; every cell with its 95 % interval."""
    rows = ood_defended_rows(metrics)
    behind = rows[rows["defense"] != "none"]
    if behind.empty:
        return style.not_in_this_run(TITLE, "no out-of-distribution set was scored behind a defense")
    most = behind.groupby(["dataset", "model"])["score"].nunique().to_dict()
    models = sorted(most, key=lambda m: (-most[m], m))[:MAX_MODELS]
    roles = [r for r in ROLES if r in set(rows["split"])]
    defenses = sorted(set(rows["defense"]), key=lambda d: (d != "none", defense_order(d)))
    scores = [sorted({s for s in only(rows, dataset=d, model=m)["score"]}, key=score_order) for d, m in models]
    figure = style.new_figure(height=1.0 + sum(0.62 + 0.36 * len(s) for s in scores))
    panels = figure.subplots(len(models), len(roles), squeeze=False, height_ratios=[len(s) + 1 for s in scores])
    counts: set[tuple[int, int]] = set()
    for line, (dataset, model), names in zip(panels, models, scores, strict=True):
        for axes, role in zip(line, roles, strict=True):
            part = only(rows, dataset=dataset, model=model, split=role)
            values = np.full((len(names), len(defenses)), np.nan)
            texts = np.full(values.shape, "", dtype=object)
            for i, score in enumerate(names):
                for j, defense in enumerate(defenses):
                    row = first(part, score=score, defense=defense)
                    if row is None:
                        continue
                    values[i, j] = row["value"]
                    texts[i, j] = f"{100 * row['value']:.1f}"
                    if not absent(row["ci_low"]):
                        texts[i, j] += f"\n[{100 * row['ci_low']:.0f}, {100 * row['ci_high']:.0f}]"
                    if not absent(row["n_id"]) and not absent(row["n_ood"]):
                        counts.add((int(row["n_id"]), int(row["n_ood"])))
            seaborn.heatmap(
                values, ax=axes, annot=texts, fmt="", cmap=style.SEQUENTIAL, vmin=0.5, vmax=1.0, cbar=False,
                linewidths=1,
                annot_kws={"color": style.INK, "fontsize": 6.5 if len(defenses) > 4 else 7.5}, xticklabels=defenses,
                yticklabels=[words.score(s) for s in names] if axes is line[0] else False,
            )  # fmt: skip
            axes.tick_params(length=0)
            axes.grid(False)
            axes.set_xticklabels(
                defenses, rotation=0 if len(defenses) <= 4 else 30, ha="center" if len(defenses) <= 4 else "right"
            )
            axes.set_yticklabels(axes.get_yticklabels(), rotation=0)
            axes.set_title(f"{full_name(model, part['model_seed'].min())}, {ROLES[role]}", fontsize=8.5)
    n = sorted(counts)
    size = f"n = {n[0][0]} ID, {n[0][1]} OOD images" if n else ""
    style.heading(
        figure,
        "AUROC of each score when every image passes through the defense first (%)",
        f"ID and OOD images alike; one training seed; {size}; in brackets 95 % intervals over images; 50 is guessing.",
    )
    return figure
