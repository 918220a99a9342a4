"""Rate, clean accuracy and accuracy under attack of codecs used as defenses."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present.figures import _rates
from windtunnel.present.select import (
    PLACE,
    absent,
    clean_rows,
    first,
    full_name,
    only,
    robust_rows,
    threat_order,
    tidy,
    worst_rows,
)

TITLE = "Rate against accuracy"
KINDS = {"clean": "clean", "unaware": "unaware attack", "through": "attack through it"}
MAX_ROWS = 3
PANEL = (1.95, 1.75)
"""About the size of a panel in inches."""


@style.styled
def rate_accuracy(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Payload bits per pixel (log) against clean, unaware and through accuracy; codec families are connected.

    A row of panels per image set and model that was judged behind at least two codec settings, those with most settings
    first. Payload leaves out the bytes that a constant image costs at the same settings: at 32 x 32 the header would
    drown the picture. The threat is the one under which most codecs were attacked. Dotted: the model without a defense.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    rates = _rates.rate_rows(metrics)
    places = _places(rates)
    if not places:
        return style.not_in_this_run(TITLE, "no model was judged behind two settings of a codec")
    rate_of = [{r["defense"]: r["value"] for _, r in only(rates, **place).iterrows()} for place in places]
    families = _rates.families_of([name for rate in rate_of for name in rate])
    given = style.family_colours(families)
    colours = {family: given[family] for family in families}
    figure = style.new_figure(height=0.65 + 2.45 * len(places) + 0.2 * _rates.legend_rows(families, bounds=True))
    panels = figure.subplots(len(places), len(KINDS), sharex="row", sharey=True, squeeze=False)
    budgets: set[str] = set()
    style.percent_axis(panels[0][0])
    for row_of_axes, place, rate in zip(panels, places, rate_of, strict=True):
        budget = _threat(metrics, place, rate)
        found = {kind: _values(metrics, kind, place, budget, list(rate)) for kind in KINDS}
        for axes, kind in zip(row_of_axes, KINDS, strict=True):
            _rates.x_axis(axes, list(rate.values()))
            _rates.draw(axes, rate, found[kind], colours, PANEL)
            base = _undefended(metrics, kind, place, budget)
            if base is not None:
                axes.axhline(base["value"], color=style.INK, linestyle=(0, (1, 1.4)), lw=1.1, zorder=1)
            if not found[kind]:
                axes.text(0.5, 0.5, "not attacked here", transform=axes.transAxes, ha="center", color=style.MUTED)
            counts = sorted({int(r["n"]) for r in found[kind].values() if not absent(r["n"])})
            size = (
                f" (n = {counts[0]})" if len(counts) == 1 else f" (n = {counts[0]} to {counts[-1]})" if counts else ""
            )
            axes.set_title(KINDS[kind] + size, fontsize=8)
        name = (
            f"{full_name(place['model'], place['model_seed'])} on {words.image_set(place['dataset'], place['split'])}"
        )
        row_of_axes[0].set_ylabel(f"{name}\naccuracy", fontsize=8)
        budgets.update([words.threat(budget)] if budget else [])
    _rates.legend(figure, colours, bounds=True)
    style.heading(
        figure,
        "Codecs as defenses: what a bit buys, clean and under attack",
        (f"Attacks at {', '.join(sorted(budgets))}. " if budgets else "")
        + "One point per setting, 95 % intervals; dotted: the same model without a defense.",
    )
    return figure


def _places(rates: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for key, part in rates.groupby(PLACE, dropna=False, sort=True):
        count = part["defense"].nunique()
        if count > 1:
            found.append((-count, str(key), {k: (None if absent(v) else v) for k, v in zip(PLACE, key, strict=True)}))
    return [place for _, _, place in sorted(found, key=lambda f: f[:2])[:MAX_ROWS]]


def _threat(metrics: pd.DataFrame, place: dict[str, Any], rate: dict[str, float]) -> str:
    rows = pd.concat([robust_rows(metrics, "through"), robust_rows(metrics, "unaware")])
    rows = only(rows, **place)
    rows = rows[rows["defense"].isin(list(rate)) & (rows["threat"] != "")]
    if rows.empty:
        return ""
    counts = rows["threat"].value_counts()
    return sorted(counts.index, key=lambda t: (-counts[t], threat_order(t)))[0]


def _values(
    metrics: pd.DataFrame, kind: str, place: dict[str, Any], budget: str, defenses: list[str]
) -> dict[str, pd.Series]:
    rows = clean_rows(metrics) if kind == "clean" else only(robust_rows(metrics, kind), threat=budget)
    found = {d: first(rows, **place, defense=d) for d in defenses}
    return {d: row for d, row in found.items() if row is not None}


def _undefended(metrics: pd.DataFrame, kind: str, place: dict[str, Any], budget: str) -> pd.Series | None:
    if kind == "clean":
        return first(clean_rows(metrics), **place, defense="none")
    return first(worst_rows(metrics), **place, threat=budget)
