"""The figure that opens the report: one codec applied n times, attacked through by several backward rules."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.select import PLACE, Outcomes, absent, attacked_rows, clean_rows, full_name, only, tidy

TITLE = "One codec applied several times, attacked through it"
SAME_AT_ONE = ("surrogate-n", "surrogate-1")


@style.styled
def sequential_jpeg(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Accuracy under an attack through a repeated codec against the number of rounds; a line per backward rule.

    Of all series in the run the one with most rounds (then most rules) is drawn. Solid is the best iterate, dashed the
    last; bands are 95 % intervals of the best iterate; a ring marks points whose cell raised a check. With one round
    the surrogate through all rounds *is* the surrogate through one: that cell, stored once, is the first point of both
    lines.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    rows = attacked_rows(metrics)
    split = [style.defense_rounds(d) for d in rows["defense"]]
    rows = rows.assign(base=[b for b, _ in split], rounds=[r for _, r in split])
    through = rows[(rows["attack_defense"] == rows["defense"]) & (rows["defense"] != "none")]
    chosen = _longest(through)
    if chosen is None:
        return style.not_in_this_run(TITLE, "no attack went through a defense that is applied more than once")
    place = {k: (None if absent(chosen[k]) else chosen[k]) for k in PLACE}
    series = only(through, **place, **{k: chosen[k] for k in ("attack", "threat", "base")})
    unaware = rows[(rows["attack_defense"].isin(["none", ""])) & (rows["defense"] != "none")]
    unaware = only(unaware, **place, **{k: chosen[k] for k in ("attack", "threat", "base")})
    clean = only(clean_rows(metrics), **place)
    split = [style.defense_rounds(d) for d in clean["defense"]]
    clean = clean.assign(base=[b for b, _ in split], rounds=[r for _, r in split])
    clean = only(clean, base=chosen["base"])

    figure = style.new_figure(height=4.3)
    axes = figure.subplots()
    ticks = sorted(series["rounds"].unique())
    at = {r: i for i, r in enumerate(ticks)}
    labels = []
    flagged: set[str] = set()
    for rule in _rules(series):
        colour = style.rule_colour(rule)
        for iterate, dash in (("best", "-"), ("first", "-"), ("last", (0, (3, 2)))):
            line = _line(series, rule, iterate)
            if line.empty:
                continue
            x, y = [at[r] for r in line["rounds"]], line["value"].to_numpy(float)
            axes.plot(x, y, color=colour, linestyle=dash, marker="o" if dash == "-" else None, zorder=3)
            if dash == "-":
                axes.fill_between(
                    x, line["ci_low"].to_numpy(float), line["ci_high"].to_numpy(float), color=colour, alpha=0.14, lw=0
                )
                labels.append((y[-1], words.rule(rule), colour))
            for xi, (_, row) in zip(x, line.iterrows(), strict=True):
                names = outcomes.raised(row["cell_id"])
                if names:
                    flagged.update(names)
                    axes.plot(xi, row["value"], "o", ms=10, mfc="none", mec=style.INK, mew=1.1, zorder=4)
    labels += _level(axes, clean, at, "clean", style.CURVES["clean"])
    labels += _level(axes, _one_per_round(unaware), at, "attack that ignores it", style.CURVES["unaware"])
    style.percent_axis(axes)
    axes.set_xticks(range(len(ticks)), [str(t) for t in ticks])
    axes.set_xlim(-0.15, len(ticks) - 1 + 0.15)
    axes.set_xlabel(f"{words.defense(chosen['base'])} applied so many times")
    axes.set_ylabel("accuracy behind the real codec")
    style.label_ends(axes, labels)
    _legend(axes, bool(flagged), series)
    least, most = int(series["n"].min()), int(series["n"].max())
    n = str(least) if least == most else f"{least} to {most}"
    last = series[(series["rounds"] == ticks[-1]) & (series["iterate"] != "last")]
    style.heading(
        figure,
        _statement(last, str(chosen["base"]), ticks[-1]),
        f"{full_name(chosen['model'], chosen['model_seed'])} on {words.image_set(chosen['dataset'], chosen['split'])}, "
        f"{words.attack(chosen['attack'])} at {words.threat(chosen['threat'])} through the defense, by backward rule; "
        f"n = {n}, 95 % bands.",
        _flag_note(flagged),
    )
    return figure


def _longest(through: pd.DataFrame) -> dict[str, Any] | None:
    """The series with most rounds, then most rules; ties by name."""
    found = []
    keys = [*PLACE, "attack", "threat", "base"]
    for key, part in through.groupby(keys, dropna=False, sort=True):
        rounds = part["rounds"].nunique()
        if rounds > 1:
            found.append(((-rounds, -part["through"].nunique(), str(key)), dict(zip(keys, key, strict=True))))
    return min(found, key=lambda f: f[0])[1] if found else None


def _rules(series: pd.DataFrame) -> list[str]:
    known = list(style.RULES)
    return sorted(series["through"].unique(), key=lambda r: (known.index(r) if r in known else len(known), r))


def _line(series: pd.DataFrame, rule: str, iterate: str) -> pd.DataFrame:
    """The points of one rule and iterate, one per number of rounds."""
    part = only(series, through=rule, iterate=iterate)
    if rule == SAME_AT_ONE[0] and not part.empty and 1 not in set(part["rounds"]):
        part = pd.concat([only(series, through=SAME_AT_ONE[1], iterate=iterate, rounds=1), part])
    return _one_per_round(part)


def _one_per_round(part: pd.DataFrame) -> pd.DataFrame:
    return part.drop_duplicates("rounds").sort_values("rounds", kind="stable")


def _level(axes: Axes, rows: pd.DataFrame, at: dict[int, int], text: str, colour: str) -> list[tuple[float, str, str]]:
    """A reference: a line over the rounds, or a horizontal one where only one number of rounds was judged."""
    rows = _one_per_round(rows[rows["rounds"].isin(list(at))])
    if rows.empty:
        return []
    x, y = [at[r] for r in rows["rounds"]], rows["value"].to_numpy(float)
    low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
    if len(x) == 1:
        x, y, low, high = [-0.15, len(at) - 0.85], [y[0]] * 2, [low[0]] * 2, [high[0]] * 2
    axes.plot(x, y, color=colour, linestyle=(0, (1, 1.4)), lw=1.4, zorder=2)
    axes.fill_between(x, low, high, color=colour, alpha=0.08, lw=0)
    return [(float(y[-1]), text, colour)]


def _legend(axes: Axes, rings: bool, series: pd.DataFrame) -> None:
    handles = []
    if (series["iterate"] != "last").any():
        handles.append(Line2D([], [], color=style.MUTED, marker="o", label="best iterate"))
    if (series["iterate"] == "last").any():
        handles.append(Line2D([], [], color=style.MUTED, linestyle=(0, (3, 2)), label="last iterate"))
    if rings:
        handles.append(
            Line2D([], [], color="none", marker="o", ms=9, mfc="none", mec=style.INK, label="a check was raised")
        )
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handlelength=2.2)


def _statement(last: pd.DataFrame, base: str, rounds: int) -> str:
    low, high = last["value"].min(), last["value"].max()
    name = words.defense(f"{base}-x{rounds}" if rounds > 1 else base)
    if last["through"].nunique() < 2 or high - low < 0.005:
        return f"{name}: {100 * high:.0f} % accuracy under attack through it"
    return f"{name}: {100 * low:.0f} % or {100 * high:.0f} % accuracy under one attack, by backward rule"


def _flag_note(flagged: set[str]) -> str:
    if not flagged:
        return ""
    titles = [_lower(words.check_words(n).title) for n in [*words.check_names(), *sorted(flagged)] if n in flagged]
    return "Checks raised at the ringed points: " + "; ".join(dict.fromkeys(titles)) + "."


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]
