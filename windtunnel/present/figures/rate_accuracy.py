"""Rate, clean accuracy and accuracy under attack of codecs used as defenses."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from windtunnel.present import style, words
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
LABEL_OFFSETS = ((-11, 4), (4, -9), (-9, -10), (4, 4))


@style.styled
def rate_accuracy(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Payload bits per pixel (log) against clean, unaware and through accuracy; codec families are connected.

    A row of panels per image set and model that was judged behind at least two codec settings, those with most settings
    first. Payload leaves out the bytes that a constant image costs at the same settings: at 32 x 32 the header would
    drown the picture. The threat is the one under which most codecs were attacked. Dotted: the model without a defense.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    rates = clean_rows(metrics, "bpp_payload")
    rates = rates[(rates["defense"] != "none") & (rates["value"] > 0)]
    rates = only(rates.assign(rounds=[style.defense_rounds(d)[1] for d in rates["defense"]]), rounds=1)
    places = _places(rates)
    if not places:
        return style.not_in_this_run(TITLE, "no model was judged behind two settings of a codec")
    figure = style.new_figure(height=0.85 + 2.45 * len(places))
    panels = figure.subplots(len(places), len(KINDS), sharex="row", sharey=True, squeeze=False)
    families: set[str] = set()
    budgets: set[str] = set()
    for row_of_axes, place in zip(panels, places, strict=True):
        rate = {r["defense"]: r["value"] for _, r in only(rates, **place).iterrows()}
        budget = _threat(metrics, place, rate)
        found = {kind: _values(metrics, kind, place, budget, list(rate)) for kind in KINDS}
        for axes, kind in zip(row_of_axes, KINDS, strict=True):
            families |= _panel(axes, rate, found[kind])
            base = _undefended(metrics, kind, place, budget)
            if base is not None:
                axes.axhline(base["value"], color=style.INK, linestyle=(0, (1, 1.4)), lw=1.1, zorder=1)
            if not found[kind]:
                axes.text(0.5, 0.5, "not attacked here", transform=axes.transAxes, ha="center", color=style.MUTED)
            counts = sorted({int(r["n"]) for r in found[kind].values() if not absent(r["n"])})
            size = (
                f" (n = {counts[0]})" if len(counts) == 1 else f" (n = {counts[0]} to {counts[-1]})" if counts else ""
            )
            axes.set_title(KINDS[kind] + size, fontsize=8.5)
            axes.set_xlabel("payload bits per pixel")
        name = (
            f"{full_name(place['model'], place['model_seed'])} on {words.image_set(place['dataset'], place['split'])}"
        )
        row_of_axes[0].set_ylabel(f"{name}\naccuracy", fontsize=8)
        budgets.update([words.threat(budget)] if budget else [])
    style.percent_axis(panels[0][0])
    _legend(figure, families)
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


def _panel(axes: Axes, rate: dict[str, float], found: dict[str, pd.Series]) -> set[str]:
    families: dict[str, list[str]] = {}
    for name in found:
        families.setdefault(style.defense_family(name), []).append(name)
    for place, (family, names) in enumerate(sorted(families.items())):
        names.sort(key=lambda d: rate[d])
        x, y = [rate[d] for d in names], [float(found[d]["value"]) for d in names]
        axes.plot(x, y, color=style.defense_colour(family), lw=1.2, zorder=2)
        for xi, yi, name in zip(x, y, names, strict=True):
            low, high = found[name]["ci_low"], found[name]["ci_high"]
            error = None if absent(low) or absent(high) else [[max(0.0, yi - low)], [max(0.0, high - yi)]]
            bound = words.is_upper_bound(found[name]["note"])
            axes.errorbar(
                xi, yi, error, color=style.defense_colour(family), marker=style.defense_marker(name), ms=5,
                mfc="white" if bound else style.defense_colour(family), elinewidth=0.8, zorder=3,
            )  # fmt: skip
            axes.annotate(
                name.partition("-")[2], (xi, yi), xytext=LABEL_OFFSETS[place % 4], textcoords="offset points",
                fontsize=6.5, color=style.defense_colour(family),
            )  # fmt: skip
    axes.set_xscale("log")
    _log_ticks(axes)
    return set(families)


def _log_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, families: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.defense_colour(f), marker=style.defense_marker(f), lw=1.2, label=words.defense(f))
        for f in sorted(families)
    ]
    handles.append(
        Line2D([], [], color=style.MUTED, marker="o", mfc="white", lw=0, label="open: upper bound (generic rules)")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
