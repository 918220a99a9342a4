"""The figure that opens the report: one codec applied n times, attacked through by several backward rules."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present.figures import _rounds
from windtunnel.present.select import Outcomes, tidy

TITLE = "One codec applied several times, attacked through it"


@style.styled
def sequential_jpeg(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Accuracy under an attack through a repeated codec against the number of rounds; a line per backward rule.

    Of all series in the run the one with most rounds (then most rules) is drawn; ``rounds`` has the others. Solid is
    the best iterate, dashed the last; bands are 95 % intervals of the best iterate; a ring marks points whose cell
    raised a check. With one round the surrogate through all rounds *is* the surrogate through one: that cell, stored
    once, is the first point of both lines.
    """
    metrics, cells = tidy(metrics), tidy(cells)
    found = _rounds.all_series(metrics)
    if not found:
        return style.not_in_this_run(TITLE, "no attack went through a defense that is applied more than once")
    series = found[0]
    figure = style.new_figure(height=4.3)
    axes = figure.subplots()
    drawn = _rounds.draw(axes, series, Outcomes(metrics, cells), series.rules, _rounds.looks(series.rules))
    axes.set_xlabel(f"{words.defense(series.base)} applied so many times")
    axes.set_ylabel("accuracy behind the real codec")
    style.label_ends(axes, drawn.labels)
    handles = _rounds.handles(series.through, bool(drawn.flagged))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0, handlelength=2.2)
    style.heading(
        figure,
        _rounds.statement(series),
        f"{series.model} on {series.images}, {series.attack} through the defense, by backward rule; "
        f"n = {series.n}, 95 % bands.",
        _rounds.flag_note(drawn.flagged),
    )
    return figure
