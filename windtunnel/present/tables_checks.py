"""What was flagged and what failed: the checks as a table and as a page in words, and the cells that are not ok."""

from __future__ import annotations

import html

import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import frame
from windtunnel.present.layout import Column, Table
from windtunnel.present.render import page
from windtunnel.present.select import absent, tidy

SHOWN = 5
"""Cells that the printed table names per check; the page names all."""


def checks(cells: pd.DataFrame) -> Table:
    """One row per check: in how many cells it was raised, ran and found nothing, was not looked at; its words; where
    it was raised. Raised checks first, then those that ran, then the rest, each in the order of the checks.
    """
    frame_of, found = tidy(cells), _raised(tidy(cells))
    lines = []
    for name in _names(frame_of):
        check, where = words.check_words(name), [row for n, row in found if n == name]
        counts = _counts(frame_of, name)
        lines.append(
            {
                "check": name,
                "title": check.title,
                **counts,
                "threshold": check.threshold,
                "meaning": check.meaning,
                "remedy": check.remedy,
                "where": "; ".join(words.cell(row) + _statistic(row, name) for row in where[:SHOWN])
                + (f"; and {len(where) - SHOWN} more" if len(where) > SHOWN else ""),
                "cell_ids": " ".join(row["cell_id"] for row in where),
            }
        )
    lines.sort(key=lambda line: (not line["raised"], not line["ok"]))
    return Table(
        name="checks",
        title="Checks: known ways of fooling oneself",
        data=frame(lines) if lines else pd.DataFrame(),
        columns=(
            Column("title", "check"),
            Column("raised", "raised (cells)", "count"),
            Column("ok", "ok", "count"),
            Column("not_run", "not looked at", "count"),
            Column("threshold", "raised when"),
            Column("meaning", "what it means"),
            Column("remedy", "what to do"),
            Column("where", "where"),
        ),
        caption=(
            "A raised check changes no number; it puts a dagger beside it. 'Not looked at' counts cells, clean ones "
            "included, where the check does not apply or what it compares is not in this run: silence says nothing."
        ),
        empty="No cells: nothing was looked at.",
        html=checks_page(cells),
    )


def _names(cells: pd.DataFrame) -> list[str]:
    """Every check of the table: the library's own in their order, then columns and flags of others by name."""
    found = {c.removeprefix("check_") for c in cells.columns if c.startswith("check_")} | set(_all_flags(cells))
    order = words.check_names()
    known = [n for n in order if n in found or (n != words.UPPER_BOUND and len(cells))]
    return [*known, *sorted(found - set(known))]


def _counts(cells: pd.DataFrame, name: str) -> dict[str, int]:
    raised = sum(name in text.split() for text in cells["flags"])
    column = cells[f"check_{name}"] if f"check_{name}" in cells.columns else pd.Series(dtype=object)
    ok = int((column == "ok").sum())
    return {"raised": raised, "ok": ok, "not_run": len(cells) - raised - ok}


def _statistic(row: pd.Series, name: str) -> str:
    statistic = row.get(f"stat_{name}")
    return "" if absent(statistic) else f" (statistic {float(statistic):.3g})"


def _raised(cells: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    found = [(name, row) for _, row in cells.iterrows() for name in row["flags"].split()]
    order = words.check_names()
    return sorted(
        found,
        key=lambda f: (order.index(f[0]) if f[0] in order else len(order), f[0], words.cell(f[1]), f[1]["cell_id"]),
    )


def checks_page(cells: pd.DataFrame) -> str:
    """The page in words: raised checks with meaning, remedy and cells; then those that ran and stayed silent; then the
    rest.
    """
    cells = tidy(cells)
    names = _names(cells)
    found = _raised(cells)
    body = "<h1>Checks: known ways of fooling oneself</h1>\n"
    body += (
        "<p>A wrong robust accuracy rarely looks wrong. These checks look for the known causes in every cell of the "
        "run. A raised check does not change a number; it puts a dagger beside it in the tables and a mark in the "
        "figures.</p>\n"
    )
    body += f"<h2>Raised ({len(found)} times)</h2>\n"
    if not found:
        body += "<p>None.</p>\n"
    for name in dict.fromkeys(n for n, _ in found):
        check = words.check_words(name)
        body += f'<div class="raised"><h2>{html.escape(check.title)}</h2>\n<p>{html.escape(check.meaning)}</p>\n'
        body += f"<p><b>What to do:</b> {html.escape(check.remedy)}</p>\n"
        if check.threshold:
            body += f'<p class="quiet">Raised when: {html.escape(check.threshold)}.</p>\n'
        counts = _counts(cells, name)
        body += (
            f'<p class="quiet">Raised in {counts["raised"]} cells, ok in {counts["ok"]}, not looked at in '
            f"{counts['not_run']}.</p>\n"
        )
        body += "<ul>\n"
        for _, row in (f for f in found if f[0] == name):
            body += f"<li>{html.escape(words.cell(row) + _statistic(row, name))}</li>\n"
        body += "</ul></div>\n"
    silent, unrun = [], []
    for name in names:
        counts, check = _counts(cells, name), words.check_words(name)
        when = f"; raised when: {check.threshold}" if check.threshold else ""
        if counts["ok"] and not counts["raised"]:
            silent.append(f"<li>{html.escape(check.title)}: ok in {counts['ok']} cells{html.escape(when)}</li>\n")
        elif not counts["raised"]:
            unrun.append(f"<li>{html.escape(check.title + when)}</li>\n")
    body += f'<h2>Ran and found nothing ({len(silent)})</h2>\n<ul class="quiet">\n{"".join(silent)}</ul>\n'
    body += f"<h2>Not run here ({len(unrun)})</h2>\n"
    body += (
        '<p class="quiet">The cells or measurements that these checks compare are not in this run. Silence here says '
        "nothing.</p>\n"
    )

    body += f'<ul class="quiet">\n{"".join(unrun)}</ul>\n'
    return page("Checks", body)


def _all_flags(cells: pd.DataFrame) -> list[str]:
    return [name for text in cells["flags"] for name in text.split()]


def failed(cells: pd.DataFrame) -> Table:
    """Cells that are not ok, or hold rows that are not: with the reason."""
    cells = tidy(cells)
    counts = [c for c in ("n_nan", "n_bound", "n_error") if c in cells.columns]
    bad = ~cells["status"].isin(["ok", ""])
    for name in counts:
        bad |= cells[name].fillna(0) > 0
    lines = []
    for _, row in cells[bad].iterrows():
        lines.append(
            {
                "cell": words.cell(row),
                "cell_id": row["cell_id"],
                "status": row["status"],
                "reason": row["reason"],
                **{c: None if absent(row.get(c)) else int(row[c]) for c in ("n", *counts)},
            }
        )
    lines.sort(key=lambda line: (line["cell"], line["cell_id"]))
    return Table(
        name="failed",
        title="Cells that failed or hold samples that did",
        data=frame(lines) if lines else pd.DataFrame(),
        columns=(
            Column("cell", "cell"),
            Column("status", "status"),
            Column("reason", "reason"),
            Column("n", "n", "count"),
            Column("n_nan", "NaN", "count"),
            Column("n_bound", "out of bounds", "count"),
            Column("n_error", "errors", "count"),
        ),
        caption="A failed sample is never counted as robust.",
        empty="None: every cell is ok.",
    )
