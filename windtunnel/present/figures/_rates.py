"""Payload bits per pixel against something: which rows have a rate, a panel, its labels. Shared by the rate figures."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.select import absent, clean_rows, only

LETTER = (0.044, 0.095)
"""Width and height in inches of a letter of a point's label."""
AWAY = (
    (0.0, 0.115),
    (0.0, -0.115),
    (0.11, 0.07),
    (-0.11, 0.07),
    (0.11, -0.07),
    (-0.11, -0.07),
    (0.0, 0.2),
    (0.0, -0.2),
)
"""Where a label may stand beside its point, in inches, the best first."""
XLABEL = "payload bits per pixel"
BOUND = "open: upper bound (generic rules)"


def rate_rows(metrics: pd.DataFrame) -> pd.DataFrame:
    """Mean payload of clean images behind codecs that are applied once, from tidy ``metrics``."""
    rows = clean_rows(metrics, "bpp_payload")
    rows = rows[(rows["defense"] != "none") & (rows["value"] > 0)]
    return only(rows.assign(rounds=[style.defense_rounds(d)[1] for d in rows["defense"]]), rounds=1)


def families_of(defenses: Sequence[str]) -> list[str]:
    """Families in the order of every table."""
    return sorted({style.defense_family(d) for d in defenses}, key=style.defense_order)


def x_axis(axes: Axes, rates: Sequence[float]) -> None:
    """A log axis over the rates, with ticks as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(min(rates) / 1.25, max(rates) * 1.25)
    # Over little more than an octave 1, 2, 5 would leave one tick or none.
    wide = max(rates) / min(rates) > 8
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if wide else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(XLABEL)


def draw(
    axes: Axes,
    rate: Mapping[str, float],
    found: Mapping[str, pd.Series],
    colours: Mapping[str, str],
    size: Sequence[float],
) -> None:
    """A point per setting with its interval, a line per family and training seed; the ends of lines are labelled.

    Other seeds than the first are thinner; open markers are upper bounds. Limits of both axes must stand; ``size`` is
    about that of the panel in inches.
    """
    lines: dict[tuple[str, str], list[str]] = {}
    for name in sorted(found, key=style.defense_order):
        lines.setdefault((style.defense_family(name), _seed(name)), []).append(name)
    points, labels = [], []
    for (family, seed), names in lines.items():
        names.sort(key=lambda d: rate[d])
        colour, marker = colours[family], style.defense_marker(family)
        at = {name: (rate[name], float(found[name]["value"])) for name in names}
        quiet = 0.5 if seed else 1.0
        axes.plot(*zip(*at.values(), strict=True), color=colour, lw=1.2 * quiet, alpha=quiet, zorder=2)
        for name, (x, y) in at.items():
            low, high = found[name]["ci_low"], found[name]["ci_high"]
            error = None if absent(low) or absent(high) else [[max(0.0, y - low)], [max(0.0, high - y)]]
            face = "white" if words.is_upper_bound(found[name]["note"]) else colour
            axes.errorbar(
                x, y, error, color=colour, marker=marker, ms=3 + 2 * quiet, mfc=face, elinewidth=0.8 * quiet, zorder=3
            )
        points += list(at.values())
        if not seed:
            ends = dict.fromkeys((names[0], names[-1]))
            labels += [(at[name], style.defense_setting(name), colour) for name in ends if style.defense_setting(name)]
    _label(axes, points, labels, size)


def _seed(name: str) -> str:
    found = re.search(r"-s(\d+)$", style.defense_rounds(name)[0])
    return found[1] if found else ""


def _label(
    axes: Axes,
    points: list[tuple[float, float]],
    labels: list[tuple[tuple[float, float], str, str]],
    size: Sequence[float],
) -> None:
    """Texts beside their points, each where it covers the fewest points and earlier texts. Pure of the renderer."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()

    def inches(x: float, y: float) -> tuple[float, float]:
        return (math.log(x / left) / math.log(right / left) * size[0], (y - low) / (high - low) * size[1])

    taken = [(*inches(*p), 0.05, 0.05) for p in points]
    for (x, y), text, colour in labels:
        px, py = inches(x, y)
        half = (LETTER[0] * len(text) / 2 + 0.01, LETTER[1] / 2)

        def cost(place: int, px: float = px, py: float = py, half: tuple[float, float] = half) -> tuple[float, int]:
            dx, dy = AWAY[place][0] + math.copysign(half[0], AWAY[place][0]) * (AWAY[place][0] != 0), AWAY[place][1]
            box = (px + dx, py + dy, *half)
            outside = 3.0 * (box[1] - half[1] < 0 or box[1] + half[1] > size[1] + 0.1)
            return (outside + sum(_overlap(box, other) for other in taken), place)

        best = min(range(len(AWAY)), key=cost)
        dx, dy = AWAY[best][0] + math.copysign(half[0], AWAY[best][0]) * (AWAY[best][0] != 0), AWAY[best][1]
        taken.append((px + dx, py + dy, *half))
        axes.annotate(
            text, (x, y), xytext=(72 * dx, 72 * dy), textcoords="offset points", fontsize=6.5, color=colour,
            ha="center", va="center", annotation_clip=False,
        )  # fmt: skip


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Shared area of two boxes (centre, half sizes), as a share of the smaller."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0] - a[2], b[0] - b[2])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1] - a[3], b[1] - b[3])
    return max(0.0, width) * max(0.0, height) / (4 * min(a[2] * a[3], b[2] * b[3]))


def legend_rows(families: Sequence[str], *, bounds: bool) -> int:
    """How many lines the legend takes: room that a figure must have."""
    texts = [words.defense(family) for family in families] + [BOUND] * bounds
    return -(-len(texts) // _columns(texts))


def legend(figure: Figure, colours: Mapping[str, str], *, bounds: bool) -> None:
    """Families of a figure, and what an open marker means where there can be one."""
    handles = [
        Line2D([], [], color=colour, marker=style.defense_marker(family), lw=1.2, label=words.defense(family))
        for family, colour in colours.items()
    ]
    if bounds:
        handles.append(Line2D([], [], color=style.MUTED, marker="o", mfc="white", lw=0, label=BOUND))
    columns = _columns([str(handle.get_label()) for handle in handles])
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _columns(texts: Sequence[str]) -> int:
    """The most columns, six at most, whose texts fit the width of a figure (a legend fills column by column)."""
    for columns in range(min(6, len(texts)), 1, -1):
        widths = [max(0.55 + 0.063 * len(t) for t in part) for part in np.array_split(texts, columns)]
        if sum(widths) <= style.WIDTH:
            return columns
    return 1
