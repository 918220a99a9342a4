"""What diagnostics measured around single images: means with intervals, each with a line on how to read it."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present import words_diagnostics as meant
from windtunnel.present.estimates import count, frame, place_words, put
from windtunnel.present.layout import Column, Table, printed
from windtunnel.present.render import page
from windtunnel.present.select import CLEAN, SIMPLE, Composed, absent, diagnostic_rows, threat_order, tidy
from windtunnel.present.style import defense_order

TITLE = "Diagnostics: what surrounds the images"
CAPTION = (
    "Means over the samples for which a quantity is defined (most: clean-correct ones), with 95 % intervals over "
    "sources. A diagnostic is no attack: it says how a model or a gradient looks, not how many samples fall."
)
EMPTY = "Not in this run: nothing was measured."


def diagnostics(metrics: pd.DataFrame, composed: Composed = SIMPLE) -> Table:
    """A row per diagnostic, quantity, image set, threat and pipeline (model, defense, backward rule)."""
    rows = diagnostic_rows(tidy(metrics))
    lines = []
    for _, row in rows.iterrows():
        name, quantity = row["diagnostic"], meant.quantity(row["diagnostic"], row["quantity"])
        defended = row["defense"] not in ("", CLEAN)
        line: dict[str, Any] = {
            "diagnostic": name, "quantity": row["quantity"], 
            "diagnostic_words": composed.diagnostics.get(name) or meant.diagnostic(name),
            "quantity_words": quantity.title, **place_words(row), "threat": row["threat"],
            "budget": words.threat(row["threat"]), "defense": row["defense"] or CLEAN,
            "rule": row["through"] if defended else "", "rule_words": words.rule(row["through"]) if defended else "",
        }  # fmt: skip
        known = None if absent(row["value"]) else row
        put(line, "mean", known, why="not defined here")
        line |= {"n": count(row), "undefined": row["note"], "reading": quantity.reading}
        lines.append(line)
    lines.sort(
        key=lambda line: (
            meant.order(line["diagnostic"], line["quantity"]), line["images"], threat_order(line["threat"]),
            line["model"], line["defense"] != CLEAN, defense_order(line["defense"]), line["rule"],
        )
    )  # fmt: skip
    made = Table(
        name="diagnostics",
        title=TITLE,
        data=frame(lines),
        columns=(
            Column("diagnostic_words", "measurement"),
            Column("quantity_words", "quantity"),
            Column("images", "images"),
            Column("budget", "threat"),
            Column("model", "model"),
            Column("defense", "defense"),
            Column("rule_words", "rule"),
            Column("mean", "mean", "measure"),
            Column("n", "n", "count"),
            Column("reading", "how to read it"),
        ),
        caption=CAPTION,
        empty=EMPTY,
    )
    return made if made.is_empty else _with_page(made)


def _with_page(table: Table) -> Table:
    body = f"<h1>{html.escape(TITLE)}</h1>\n<p>{html.escape(CAPTION)}</p>\n"
    for _, part in table.data.groupby("diagnostic", sort=False):
        body += f"<h2>{html.escape(part['diagnostic_words'].iloc[0])}</h2>\n" + _grid(part) + _readings(part)
    return Table(**{**table.__dict__, "html": page(TITLE, body)})


def _grid(part: pd.DataFrame) -> str:
    """One diagnostic: a row per pipeline and threat, a column per quantity."""
    where = ["images", "budget", "model", "defense", "rule_words"]
    defended = (part["defense"] != CLEAN).any()
    shown = [w for w in where if defended or w not in ("defense", "rule_words")]
    lines, headers = [], {q: t for q, t in zip(part["quantity"], part["quantity_words"], strict=True)}
    for key, pipeline in part.groupby([*where, "threat"], sort=False):
        line = dict(zip(where, key, strict=False))
        for record in pipeline.to_dict("records"):
            line |= {f"{record['quantity']}{end}": record.get(f"mean{end}") for end in ("", "_low", "_high", "_why")}
        sizes = sorted({int(n) for n in pipeline["n"] if not absent(n)})
        line["n"] = "" if not sizes else f"{sizes[0]}" + (f" to {sizes[-1]}" if len(sizes) > 1 else "")
        lines.append(line)
    names = {"images": "images", "budget": "threat", "model": "model", "defense": "defense", "rule_words": "rule"}
    columns = (
        *(Column(w, names[w]) for w in shown),
        *(Column(q, title, "measure") for q, title in headers.items()),
        Column("n", "n"),
    )
    heads, rows = printed(Table("", "", pd.DataFrame(lines), columns))
    kinds = [' class="num"' if c.kind != "text" else "" for c in columns]
    text = '<div class="scroll"><table>\n<thead><tr>'
    text += "".join(f"<th{k}>{html.escape(h)}</th>" for k, h in zip(kinds, heads, strict=True))
    text += "</tr></thead>\n<tbody>\n"
    for row in rows:
        fields = "".join(f"<td{k}>{html.escape(c.text)}</td>" for k, c in zip(kinds, row, strict=True))
        text += f"<tr>{fields}</tr>\n"
    return text + "</tbody></table></div>\n"


def _readings(part: pd.DataFrame) -> str:
    seen = dict(zip(part["quantity_words"], part["reading"], strict=True))
    items = [f"<li><b>{html.escape(t)}</b>: {html.escape(r)}</li>\n" for t, r in seen.items() if r]
    return f'<ul class="foot">\n{"".join(items)}</ul>\n' if items else ""
