"""ROC curves of the scores with both 95 % operating points: the two numbers that papers call FPR95."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.figures._scored import DEFAULT_SCORES, Group, curve, scored
from windtunnel.present.select import absent, first, only, tidy

TITLE = "ROC of the out-of-distribution scores"
ROLES = {"near_ood": "near OOD", "far_ood": "far OOD"}


@style.styled
def roc(
    samples: pd.DataFrame, metrics: pd.DataFrame, scores: tuple[str, ...] = DEFAULT_SCORES, model: str | None = None
) -> Figure:
    """Panels near and far, one curve per score; every set of a panel weighs the same, so the area is the mean AUROC.

    The circle lies where 95 % of ID images are accepted (FPR95 with ID positive is 1 minus its height), the square
    where 95 % of OOD images are flagged (FPR95 with OOD positive is its abscissa, of the sets pooled with equal
    weight).
    """
    metrics = tidy(metrics)
    found = scored(samples, scores, model)
    roles = [r for r in ROLES if found is not None and len(found.group(r, found.scores[0]).values)]
    if found is None or not roles:
        return style.not_in_this_run(TITLE, "no model with scores of an ID and an OOD set")
    figure = style.new_figure(height=4.1)
    panels = figure.subplots(1, len(roles), squeeze=False, sharey=True)[0]
    colours = style.score_colours(found.scores)
    for axes, role in zip(panels, roles, strict=True):
        axes.plot([0, 1], [0, 1], color=style.FAINT, lw=0.8)
        axes.axvline(0.05, color=style.FAINT, lw=0.7, linestyle=(0, (3, 2)))
        axes.axhline(0.95, color=style.FAINT, lw=0.7, linestyle=(0, (3, 2)))
        handles = []
        for score in found.scores:
            inside, outside = found.group("id", score), found.group(role, score)
            x, y = curve(inside, outside)
            axes.plot(x, y, color=colours[score], zorder=3)
            axes.plot(*_id_point(inside, outside), "o", ms=6, color=colours[score], mec="white", zorder=5)
            axes.plot(*_ood_point(x, y), "s", ms=6, color=colours[score], mec="white", zorder=5)
            area = _area(metrics, found.model, found.seed, role, score, float(np.trapezoid(y, x)))
            handles.append(Line2D([], [], color=colours[score], label=f"{words.score(score)} {area}"))
        axes.legend(
            handles=handles,
            loc="lower right",
            handlelength=1.2,
            frameon=True,
            edgecolor="none",
            framealpha=0.9,
            title="AUROC (%)",
            title_fontsize=8,
            alignment="left",
        )
        sizes = found.group(role, found.scores[0])
        names = textwrap.fill(", ".join(sizes.sets), 44)
        axes.set_title(f"{ROLES[role]} (n = {len(sizes.values)})\n{names}", fontsize=8.5)
        axes.set_aspect("equal")
        style.percent_axis(axes, axis="x")
        axes.set_xlabel("share of ID images flagged")
    style.percent_axis(panels[0])
    panels[0].set_ylabel("share of OOD images flagged")
    marks = [
        Line2D(
            [],
            [],
            lw=0,
            marker="o",
            color=style.MUTED,
            label="95 % of ID accepted (FPR95, ID positive: distance to the top)",
        ),
        Line2D(
            [],
            [],
            lw=0,
            marker="s",
            color=style.MUTED,
            label="95 % of OOD flagged (FPR95, OOD positive: distance to the left)",
        ),
    ]
    figure.legend(handles=marks, loc="outside lower left", ncols=1)
    n = len(found.group("id", found.scores[0]).values)
    style.heading(
        figure,
        f"{found.name}: two operating points, both called FPR95",
        f"{found.dataset}, one network, undefended, clean; n = {n} ID images; 95 % intervals over images.",
    )
    return figure


def _id_point(inside: Group, outside: Group) -> tuple[float, float]:
    """Threshold at the order statistic that accepts 95 % of ID, ties accepted: what is flagged of ID and of OOD."""
    ordered = np.sort(inside.values)
    threshold = ordered[int(np.ceil(0.95 * len(ordered))) - 1]
    return float(np.mean(inside.values > threshold)), float(
        outside.weights[outside.values > threshold].sum() / outside.weights.sum()
    )


def _ood_point(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The first threshold, from the highest down, that flags 95 % of OOD."""
    at = int(np.argmax(y >= 0.95 - 1e-12))
    return float(x[at]), float(y[at])


def _area(metrics: pd.DataFrame, model: str, seed: int, role: str, score: str, drawn: float) -> str:
    rows = only(metrics, metric="auroc", model=model, model_seed=seed, split=role, score=score, defense=("none", ""))
    rows = rows[(rows["group_id"] != "") & rows["attack"].isin(["none", ""])]
    row = first(rows)
    if row is None or absent(row["ci_low"]):
        return f"{100 * drawn:.1f}"
    return f"{100 * row['value']:.1f} [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
