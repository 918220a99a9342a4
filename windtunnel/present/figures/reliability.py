"""Reliability: does a model that says 80 % hit in 80 % of the cases?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import beta

from windtunnel.present import style, words
from windtunnel.present.select import CLEAN, UNWARPED, absent, clean_rows, first, full_name, only, tidy

TITLE = "Confidence against accuracy"
BINS = 15
MAX_PANELS = 4


@style.styled
def reliability(samples: pd.DataFrame, metrics: pd.DataFrame) -> Figure:
    """One panel per model (lowest seed, clean ID set, undefended): accuracy per confidence bin, counts below.

    Fifteen bins of equal width, as ECE-15 has them. Bars of single bins are Clopper-Pearson 95 % intervals; ECE and its
    interval are those of ``metrics``.
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
    figure = style.new_figure(width=max(3.6, style.WIDTH * min(1.0, 0.15 + 0.25 * len(places))), height=3.3)
    panels = figure.subplots(2, len(places), squeeze=False, sharex=True, sharey="row", height_ratios=[3.2, 1])
    colours = style.model_colours(rows["model"])
    for (top, bottom), place in zip(panels.T, places, strict=True):
        part = only(rows, **place)
        part = part[part["model_seed"] == part["model_seed"].min()]
        conf, correct = part["conf"].to_numpy(float), part["correct"].to_numpy(bool)
        edges = np.linspace(0.0, 1.0, BINS + 1)
        where = np.clip(np.ceil(conf * BINS).astype(int) - 1, 0, BINS - 1)
        top.plot([0, 1], [0, 1], color=style.FAINT, lw=0.9, zorder=1)
        for b in range(BINS):
            inside = where == b
            n, k = int(inside.sum()), int(correct[inside].sum())
            if not n:
                continue
            low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
            high = beta.ppf(0.975, k + 1, n - k) if k < n else 1.0
            top.plot([conf[inside].mean()] * 2, [low, high], color=colours[place["model"]], lw=0.9, alpha=0.7, zorder=2)
            top.plot(
                conf[inside].mean(),
                k / n,
                "o",
                color=colours[place["model"]],
                mec="white",
                ms=5.5,
                zorder=3,
                clip_on=False,
            )
        bottom.stairs(np.bincount(where, minlength=BINS), edges, fill=True, color=colours[place["model"]], alpha=0.55)
        top.set_title(f"{full_name(place['model'], part['model_seed'].iloc[0])} (n = {len(part)})", fontsize=8.5)
        top.text(
            0.04,
            0.96,
            _ece(metrics, place, part["model_seed"].iloc[0]),
            transform=top.transAxes,
            va="top",
            fontsize=7.5,
        )
        style.percent_axis(bottom, axis="x")
        bottom.set_xlabel("confidence")
    style.percent_axis(panels[0][0])
    panels[0][0].set_ylabel("accuracy")
    panels[1][0].set_ylabel("images")
    sets = ", ".join(sorted({words.image_set(p["dataset"], p["split"]) for p in places}))
    style.heading(
        figure,
        "Confidence against accuracy on clean images",
        f"{sets}, undefended. Below the diagonal a model claims more than it knows. Lines: 95 % intervals of each bin.",
    )
    return figure


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


def _ece(metrics: pd.DataFrame, place: dict[str, str], seed: int) -> str:
    row = first(clean_rows(metrics, "ece15"), **place, model_seed=seed, defense="none")
    if row is None:
        return ""
    text = f"ECE-15 {100 * row['value']:.1f} %"
    return text if absent(row["ci_low"]) else f"{text}\n[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
