"""How the scores of ID, near, far and adversarial images lie over one another."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.figures._scored import DEFAULT_SCORES, scored

TITLE = "Scores of in- and out-of-distribution images"
ROLES = {"id": "in-distribution", "near_ood": "near OOD", "far_ood": "far OOD", "adversarial": "adversarial"}
BINS = 40


@style.styled
def score_histograms(
    samples: pd.DataFrame, metrics: pd.DataFrame, scores: tuple[str, ...] = DEFAULT_SCORES, model: str | None = None
) -> Figure:
    """One panel per score: histograms by role, every set of a role weighing the same; the line is the ID 95 %
    threshold.

    The axis covers the central 99 % of all drawn values; what lies beyond is counted in the outermost bins.
    """
    found = scored(samples, scores, model)
    if found is None:
        return style.not_in_this_run(TITLE, "no model with scores of an ID and an OOD set")
    figure = style.new_figure(height=3.3)
    panels = figure.subplots(1, len(found.scores), squeeze=False)[0]
    roles = [r for r in ROLES if len(found.group(r, found.scores[0]).values)]
    counts = {}
    for axes, score in zip(panels, found.scores, strict=True):
        groups = {role: found.group(role, score) for role in roles}
        together = np.concatenate([g.values for g in groups.values()])
        low, high = np.quantile(together, [0.005, 0.995], method="lower")
        edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
        for role, group in groups.items():
            counts[role] = (len(group.values), len(group.sets))
            heights, _ = np.histogram(np.clip(group.values, edges[0], edges[-1]), edges, weights=group.weights)
            axes.stairs(heights, edges, color=style.GROUPS[role], lw=1.4, zorder=3)
            axes.stairs(heights, edges, color=style.GROUPS[role], fill=True, alpha=0.12, zorder=2)
        ordered = np.sort(groups["id"].values)
        axes.axvline(ordered[int(np.ceil(0.95 * len(ordered))) - 1], color=style.INK, lw=0.9, linestyle=(0, (3, 2)))
        axes.set_title(words.score(score), fontsize=9)
        axes.set_xlabel("score (higher = more OOD)")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(False)
    panels[0].set_ylabel("share of images")
    handles = [
        Line2D([], [], color=style.GROUPS[r], lw=2, label=f"{ROLES[r]} (n = {counts[r][0]}"
               + (f", {counts[r][1]} sets" if counts[r][1] > 1 else "") + ")")
        for r in roles
    ]  # fmt: skip
    handles.append(Line2D([], [], color=style.INK, lw=0.9, linestyle=(0, (3, 2)), label="95 % of ID accepted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    attack = (
        f"; adversarial: {words.attack(found.attack)} at {words.threat(found.threat)}, driven to its end"
        if found.attack
        else ""
    )
    style.heading(
        figure,
        f"{found.name}: how far OOD and adversarial images stand out, by score",
        f"{found.dataset}, one network, undefended{attack}. Each histogram sums to one.",
    )
    return figure
