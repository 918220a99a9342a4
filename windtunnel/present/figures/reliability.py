"""Reliability: does a model that says 80 % hit in 80 % of the cases?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta

from windtunnel.present import style, words
from windtunnel.present.select import CLEAN, UNWARPED, absent, clean_rows, first, full_name, only, tidy

TITLE = "Confidence against accuracy"
BINS = 15
MAX_PANELS = 6


@style.styled
def reliability(samples: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """One panel per model (lowest seed, clean ID set, undefended): accuracy per confidence bin, counts below.

    Fifteen bins of equal width, as ECE-15 has them. Bars of single bins are Clopper-Pearson 95 % intervals; ECE,
    and what a perfectly calibrated model would show at this n, are those of ``metrics``.
    """
    metrics = tidy(metrics)
    rows = _rows(samples)
    places = (
        rows[["dataset", "split", "model"]]
        .drop_duplicates()
        .sort_values(["dataset", "split", "model"])
        .to_dict("records")
    )
    if not places:
        return style.not_in_this_run(TITLE, "no labelled clean set")
    places = places[:MAX_PANELS]
    columns = len(places) if len(places) <= 4 else 3
    lines = -(-len(places) // columns)
    figure = style.new_figure(width=max(3.8, style.WIDTH * min(1.0, 0.15 + 0.25 * columns)), height=0.75 + 2.75 * lines)
    panels = figure.subplots(
        2 * lines, columns, squeeze=False, sharex=True, sharey="row", height_ratios=[3.2, 1] * lines
    )
    colours = style.model_colours(rows["model"])
    for place_number in range(lines * columns):
        line, column = divmod(place_number, columns)
        top, bottom = panels[2 * line][column], panels[2 * line + 1][column]
        if place_number >= len(places):
            top.remove()
            bottom.remove()
            continue
        place = places[place_number]
        part = only(rows, **place)
        part = part[part["model_seed"] == part["model_seed"].min()]
        seed = int(part["model_seed"].iloc[0])
        _bins(top, bottom, part, colours[place["model"]])
        title = f"{full_name(place['model'], seed)} (n = {len(part)})"
        top.set_title("\n".join([title, *_ece(metrics, place, seed)]), fontsize=8)
        style.percent_axis(top)
        style.percent_axis(bottom, axis="x")
        bottom.tick_params(labelbottom=True)
        bottom.set_xlabel("confidence")
        if column == 0:
            top.set_ylabel("accuracy")
            bottom.set_ylabel("images")
    sets = ", ".join(sorted({words.image_set(p["dataset"], p["split"]) for p in places}))
    style.heading(
        figure,
        "Confidence against accuracy on clean images",
        f"{sets}, undefended. Below the diagonal a model claims more than it knows. Lines: 95 % intervals of each bin.",
    )
    return figure


def _bins(top: Axes, bottom: Axes, part: pd.DataFrame, colour: str) -> None:
    conf, correct = part["conf"].to_numpy(float), part["correct"].to_numpy(bool)
    where = np.clip(np.ceil(conf * BINS).astype(int) - 1, 0, BINS - 1)
    top.plot([0, 1], [0, 1], color=style.FAINT, lw=0.9, zorder=1)
    for b in np.unique(where):
        inside = where == b
        n, k, x = int(inside.sum()), int(correct[inside].sum()), float(conf[inside].mean())
        low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
        high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
        top.plot([x, x], [low, high], color=colour, lw=0.9, alpha=0.7, zorder=2)
        top.plot(x, k / n, "o", color=colour, mec="white", ms=5.5, zorder=3, clip_on=False)
    edges = np.linspace(0.0, 1.0, BINS + 1)
    bottom.stairs(np.bincount(where, minlength=BINS), edges, fill=True, color=colour, alpha=0.55)


def _rows(samples: pd.DataFrame) -> pd.DataFrame:
    keep = [
        "dataset",
        "split",
        "role",
        "shift",
        "model",
        "model_seed",
        "attack",
        "defense",
        "conf",
        "correct",
        "source_model",
    ]
    rows = only(tidy(samples[keep]), attack=CLEAN, defense="none", role="id", shift=UNWARPED)
    return rows[rows["correct"].notna() & rows["conf"].notna() & rows["model_seed"].notna()]


def _ece(metrics: pd.DataFrame, place: dict[str, str], seed: int) -> list[str]:
    """ECE-15 with its interval where it has one, and what a perfectly calibrated model would show at this n."""
    rows = {m: first(clean_rows(metrics, m), **place, model_seed=seed, defense="none") for m in ("ece15", "ece15_null")}
    found, null = rows["ece15"], rows["ece15_null"]
    if found is None:
        return []
    text = f"ECE-15 {100 * found['value']:.1f} %"
    if not absent(found["ci_low"]):
        text += f" [{100 * found['ci_low']:.1f}, {100 * found['ci_high']:.1f}]"
    return [text] if null is None else [text, f"if calibrated {100 * null['value']:.1f} %"]
