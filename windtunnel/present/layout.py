"""A table before it is printed: fractions in a frame, and how each column is to be read. The writers print it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from windtunnel.present.select import absent

Kind = Literal["text", "percent", "difference", "number", "decimal", "measure", "count", "p"]
SYMBOLS = ("†", "‡", "§", "¶", "‖", "††", "‡‡", "§§", "¶¶", "‖‖")
MISSING = "-"


@dataclass(frozen=True)
class Column:
    """A printed column. An estimate ``x`` may have companions ``x_low``, ``x_high`` (its interval), ``x_sd`` (over
    seeds), ``x_notes`` (names of footnotes, joined by spaces) and ``x_why`` (what to print where it is null).

    Kinds: ``percent`` a fraction printed in percent, ``difference`` the same with a sign, ``number`` two decimals,
    ``decimal`` three, ``measure`` three significant digits, ``count`` whole, ``p`` a p-value, ``text``.
    """

    key: str
    header: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """``data`` holds fractions and is what the CSV prints; ``columns`` say what the printed forms show, in order."""

    name: str
    title: str
    data: pd.DataFrame
    columns: tuple[Column, ...]
    footnotes: dict[str, str] = field(default_factory=dict)
    caption: str = ""
    empty: str = "Not in this run."
    html: str | None = None
    """A finished page that stands for the HTML form, where a grid is not the way to say it."""

    @property
    def is_empty(self) -> bool:
        """Whether this run has nothing for the table."""
        return len(self.data) == 0

    def symbols(self) -> dict[str, str]:
        """Footnote name to dagger, in the order of ``footnotes``, of those that some printed cell bears."""
        borne: set[str] = set()
        for column in self.columns:
            notes = f"{column.key}_notes"
            if notes in self.data.columns:
                for value in self.data[notes]:
                    borne.update([] if absent(value) else str(value).split())
        names = [n for n in self.footnotes if n in borne]
        marks = [*SYMBOLS, *(f"({i})" for i in range(len(SYMBOLS) + 1, len(names) + 1))]
        return dict(zip(names, marks, strict=False))


@dataclass(frozen=True)
class Printed:
    """One printed cell: its text and the daggers behind it."""

    text: str
    marks: str = ""


def printed(table: Table) -> tuple[list[str], list[list[Printed]]]:
    """Headers and cells of a table, percentages and intervals already words. Pure."""
    symbols = table.symbols()
    rows = []
    for row in table.data.to_dict("records"):
        rows.append([_cell(row, column, symbols) for column in table.columns])
    return [c.header for c in table.columns], rows


def _cell(row: dict[str, Any], column: Column, symbols: dict[str, str]) -> Printed:
    value = row.get(column.key)
    notes = row.get(f"{column.key}_notes")
    marks = "" if absent(notes) else " ".join(symbols[n] for n in str(notes).split() if n in symbols)
    if absent(value) or value == "":
        why = row.get(f"{column.key}_why")
        return Printed(MISSING if absent(why) or why == "" else str(why))
    text = one(value, column.kind)
    spread = row.get(f"{column.key}_sd")
    if not absent(spread):
        text += f" ± {one(spread, 'percent' if column.kind == 'difference' else column.kind)}"
    low, high = row.get(f"{column.key}_low"), row.get(f"{column.key}_high")
    if not absent(low) and not absent(high):
        text += f" [{one(low, column.kind)}, {one(high, column.kind)}]"
    return Printed(text, marks)


def one(value: Any, kind: Kind) -> str:
    """One number in the form of its column."""
    if kind == "text":
        return str(value)
    number = float(value)
    if kind == "percent":
        return _signless_zero(f"{100 * number:.1f}")
    if kind == "difference":
        return _signless_zero(f"{100 * number:+.1f}")
    if kind == "number":
        return f"{number:.2f}"
    if kind == "decimal":
        return f"{number:.3f}"
    if kind == "measure":
        return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
    if kind == "count":
        return f"{round(number)}"
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def _signless_zero(text: str) -> str:
    return text.lstrip("+-") if float(text) == 0 else text
