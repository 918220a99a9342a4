"""Worst-case accuracy of undefended models against the budget of the attack."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.select import absent, attacked_rows, clean_rows, full_name, only, tidy, worst_rows

TITLE = "Accuracy against the attack's budget"
NOISE = ("noise", "sign-noise", "sign_noise")
NORMS = {"linf": "L∞ budget (of 255), square-root axis", "l2": "L2 budget, square-root axis"}


@style.styled
def accuracy_against_epsilon(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """One panel per norm, one line per model: ``robust_accuracy`` of the undefended model, with 95 % bands; dotted:
    sign noise.

    The point at budget 0 is clean accuracy. Noise of the same size shows how much of the fall is the attack's doing.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    worst = worst_rows(metrics)
    worst = worst.assign(norm=[t.partition("-")[0] for t in worst["threat"]])
    noise = only(attacked_rows(metrics), attack=NOISE, defense="none")
    noise = noise.assign(norm=[t.partition("-")[0] for t in noise["threat"]])
    clean = only(clean_rows(metrics), defense="none")
    if worst.empty:
        return style.not_in_this_run(TITLE, "no attack on an undefended model")
    norms = [n for n in NORMS if n in set(worst["norm"])] + sorted(set(worst["norm"]) - set(NORMS))
    colours, markers = style.model_colours(worst["model"]), style.model_markers(worst["model"])
    figure = style.new_figure(height=3.6)
    panels = figure.subplots(
        1, len(norms), sharey=True, squeeze=False, width_ratios=[1.6 if n == "linf" else 1 for n in norms]
    )[0]
    counts = set()
    for axes, norm in zip(panels, norms, strict=True):
        labels = []
        part = only(worst, norm=norm)
        for key, line in part.groupby(["dataset", "split", "model", "model_seed"], dropna=False, sort=True):
            place = dict(
                zip(("dataset", "split", "model", "model_seed"), (None if absent(k) else k for k in key), strict=True)
            )
            colour, marker = colours[place["model"]], markers[place["model"]]
            at_zero = only(clean, **place).head(1)
            line = pd.concat([at_zero.assign(eps=0.0), line.sort_values("eps", kind="stable")]).drop_duplicates("eps")
            scale = 255.0 if norm == "linf" else 1.0
            x, y = line["eps"].to_numpy(float) * scale, line["value"].to_numpy(float)
            axes.plot(x, y, color=colour, marker=marker, zorder=3)
            axes.fill_between(
                x, line["ci_low"].to_numpy(float), line["ci_high"].to_numpy(float), color=colour, alpha=0.15, lw=0
            )
            still = only(noise, norm=norm, **place).drop_duplicates("eps").sort_values("eps", kind="stable")
            if len(still):
                axes.plot(still["eps"] * scale, still["value"], color=colour, linestyle=(0, (1, 1.4)), lw=1.2, zorder=2)
            labels.append((float(y[-1]), full_name(place["model"], place["model_seed"]), colour))
            counts.update(int(n) for n in line["n"][line["eps"] > 0].dropna())
        axes.set_xlabel(NORMS.get(norm, norm))
        budgets = sorted({round(float(e) * (255 if norm == "linf" else 1), 6) for e in part["eps"]})
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_xticks([0, *budgets], [f"{b:g}" for b in [0, *budgets]])
        if axes is panels[0]:
            style.percent_axis(axes)
            axes.set_ylabel("accuracy, worst case over attacks")
        style.label_ends(axes, labels, gap=0.07)
    handles = [Line2D([], [], color=style.MUTED, label="worst case over attacks")]
    if len(noise):
        handles.append(Line2D([], [], color=style.MUTED, linestyle=(0, (1, 1.4)), label="sign noise of the same size"))
    panels[0].legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0)
    attacks = sorted({words.attack(a) for a in attacked_rows(metrics)["attack"] if a not in NOISE})
    named = ", ".join(attacks) if len(attacks) <= 5 else f"{len(attacks)} of them"
    n = f"n = {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "") if counts else ""
    style.heading(
        figure,
        "Undefended models: accuracy falls with the attack's budget" if _falls(worst) else TITLE,
        f"Share of samples correct clean and under every attack of the run ({named}); {n}, 95 % bands.",
    )
    return figure


def _root(x: np.ndarray) -> np.ndarray:
    """Square root that keeps the margin left of zero: small budgets are where models differ."""
    return np.sign(x) * np.sqrt(np.abs(x))


def _square(x: np.ndarray) -> np.ndarray:
    return np.sign(x) * np.square(x)


def _falls(worst: pd.DataFrame) -> bool:
    """Whether the title's statement holds: for every line with two budgets or more the largest leaves less than the
    smallest.
    """
    lines = [
        p.sort_values("eps")["value"].to_numpy() for _, p in worst.groupby(["dataset", "model", "model_seed", "norm"])
    ]
    long = [line for line in lines if len(line) > 1]
    return bool(long) and all(line[-1] < line[0] for line in long)
