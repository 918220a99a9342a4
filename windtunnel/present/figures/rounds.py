"""Every repeated defense of a run: rounds against accuracy, a panel each, a line per backward rule."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from windtunnel.present import style, words
from windtunnel.present.figures import _rounds
from windtunnel.present.figures._rounds import Looks, Series
from windtunnel.present.select import Outcomes, tidy

TITLE = "Defenses applied several times, attacked through them"
COLUMNS = 3
MAX_PANELS = 9
MAX_RULES = 6
MAX_COMBINED = 4


@style.styled
def rounds(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Accuracy against the number of rounds, one panel per repeated defense and model, in the language of
    ``sequential_jpeg``: solid best iterate with its band, dashed last, dotted references, rings at checks.

    Of a defense on one model the attack and threat with most rounds (then most rules) is shown; panels by defense, then
    model. A composition has a rule per combination of its stages': of more than four (of other defenses six) those that
    end lowest are drawn, and the one that ends highest, which is where masking shows.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    outcomes = Outcomes(metrics, cells)
    found = _one_each(_rounds.all_series(metrics))
    if not found:
        return style.not_in_this_run(TITLE, "no attack went through a defense that is applied more than once")
    shown = found[:MAX_PANELS]
    picked = [_rules(series) for series in shown]
    look = _rounds.looks(rule for rules in picked for rule in rules)
    columns = 2 if len(shown) == 4 else min(COLUMNS, len(shown))
    n_rows = -(-len(shown) // columns)
    # The legend has a row of the grid to itself: an outside one would lie on the note at the foot.
    lines = -(-(len(look.colours) + 5) // COLUMNS)
    panel, legend = (3.0 if n_rows == 1 else 2.4), 0.19 * lines + 0.1
    figure = style.new_figure(height=1.0 + panel * n_rows + legend)
    grid = figure.add_gridspec(n_rows + 1, columns, height_ratios=[panel] * n_rows + [legend])
    width = figure.get_figwidth() / columns - 0.4
    flagged: set[str] = set()
    several = len({(s.model, s.images, s.attack) for s in shown}) > 1
    first_of_all = None
    for place, (series, rules) in enumerate(zip(shown, picked, strict=True)):
        axes = figure.add_subplot(grid[place // columns, place % columns], sharey=first_of_all)
        first_of_all = first_of_all or axes
        flagged |= _rounds.draw(axes, series, outcomes, rules, look).flagged
        where = f"{series.model}, {series.attack}, n = {series.n}" if several else f"n = {series.n}"
        axes.set_title(style.wrap(words.defense(series.base), width, 9.0))
        axes.set_xlabel(style.wrap(f"rounds; {where}", width, 7.5), fontsize=7.5)
        if place % columns == 0:
            axes.set_ylabel("accuracy behind the defense", fontsize=8)
        else:
            axes.tick_params(labelleft=False)
    below = figure.add_subplot(grid[n_rows, :])
    below.set_axis_off()
    below.legend(handles=_entries(shown, look, bool(flagged)), loc="center", ncols=COLUMNS, handlelength=2.2)
    same = "" if several else f"{shown[0].model} on {shown[0].images}, {shown[0].attack} through the defense. "
    left = f" Of {len(found)} repeated defenses the first {len(shown)} are drawn." if len(found) > len(shown) else ""
    hidden = any(len(rules) < len(series.rules) for rules, series in zip(picked, shown, strict=True))
    left += " Of many combined rules those that end lowest, and the highest, are drawn." if hidden else ""
    style.heading(
        figure,
        _title(shown),
        f"{same}One panel per repeated defense, a line per backward rule, 95 % bands.{left}",
        _rounds.flag_note(flagged),
    )
    return figure


def _one_each(found: list[Series]) -> list[Series]:
    """Of every defense on one model its longest series, ordered by defense, then model."""
    first: dict[tuple[str, ...], Series] = {}
    for series in found:
        first.setdefault((series.base, series.images, series.model), series)
    return sorted(first.values(), key=lambda s: (style.defense_order(s.base), s.images, s.model))


def _rules(series: Series) -> list[str]:
    """The rules of a panel: all, or of too many the lowest ones and the highest."""
    rules = series.rules
    most = MAX_COMBINED if style.THEN in series.base else MAX_RULES
    if len(rules) <= most:
        return rules
    ends = series.last().drop_duplicates("through").sort_values(["value", "through"], kind="stable")["through"].tolist()
    ends += [rule for rule in rules if rule not in ends]
    chosen = {*ends[: most - 1], ends[-1]}
    return [rule for rule in rules if rule in chosen]


def _title(shown: list[Series]) -> str:
    """One panel says its numbers; several say how far apart the rules stand at most."""
    if len(shown) == 1:
        return _rounds.statement(shown[0])
    gaps = [(s.last()["value"].max() - s.last()["value"].min(), -i) for i, s in enumerate(shown)]
    gap, place = max(gaps)
    if gap < 0.005:
        return "Applied several times, attacked through: no backward rule differs"
    return _rounds.statement(shown[-place])


def _entries(shown: list[Series], look: Looks, rings: bool) -> list[Line2D]:
    made = [
        Line2D([], [], color=look.colours[rule], marker=look.markers[rule], label=words.rule(rule))
        for rule in look.colours
    ]
    references = {"clean": any(len(s.clean) for s in shown), "unaware": any(len(s.unaware) for s in shown)}
    for name, text in (("clean", "clean"), ("unaware", "attack that ignores it")):
        if references[name]:
            made.append(Line2D([], [], color=style.CURVES[name], linestyle=_rounds.DOTTED, lw=1.4, label=text))
    return made + _rounds.handles(pd.concat([s.through for s in shown]), rings)
