"""Tables and figures on disk: Markdown, CSV, LaTeX (booktabs), small HTML pages, SVG and PNG. The only I/O of this
room.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from windtunnel.present.layout import Printed, Table, printed
from windtunnel.present.style import png_bytes, svg_bytes
from windtunnel.store import write_atomic

FORMS = ("md", "csv", "tex", "html")

CSS = """
body{font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica
Neue",Arial,sans-serif;color:#222;margin:1.2rem 1.5rem; max-width:110rem}
h1{font-size:1.25rem;margin:0 0 .3rem}h2{font-size:1.05rem;margin:1.4rem 0 .2rem}p{max-width:60rem;margin:.3rem 0 .8rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th{text-align:left;border-bottom:1.5px solid #222;border-top:1.5px solid #222;vertical-align:bottom}
th,td{padding:.28rem .7rem .28rem 0;vertical-align:top}td.num,th.num{text-align:right;white-space:nowrap}
tr.rule td{border-top:1px solid #ccc}tbody tr:last-child td{border-bottom:1.5px solid #222}
tbody tr:hover{background:#f5f7fa}sup{color:#b03a00}ol,ul{max-width:60rem}.foot{color:#444;font-size:.9em}
.raised{border-left:4px solid #d55e00;padding-left:.9rem;margin:1rem 0}.quiet{color:#555}
"""


# ------------------------------------------------------------------------------------------------------------- markdown


def markdown(table: Table) -> str:
    """The table for a README or a note: percentages, intervals as [low, high], daggers explained below."""
    lines = [f"# {table.title}", ""]
    if table.caption:
        lines += [table.caption, ""]
    if table.is_empty:
        return "\n".join([*lines, table.empty, ""])
    headers, rows = printed(table)
    numeric = [c.kind != "text" for c in table.columns]
    lines.append("| " + " | ".join(_md(h) for h in headers) + " |")
    lines.append("|" + "|".join("---:" if n else "---" for n in numeric) + "|")
    for row in rows:
        lines.append("| " + " | ".join(_md(p.text) + (f" {p.marks}" if p.marks else "") for p in row) + " |")
    notes = [f"{mark} {_md(table.footnotes[name])}" for name, mark in table.symbols().items()]
    return "\n".join([*lines, "", *[line for note in notes for line in (note, "")]])


def _md(text: str) -> str:
    out = text.replace("\\", "\\\\")
    for sign in "|*_`<>":
        out = out.replace(sign, "\\" + sign)
    return " ".join(out.split())


# ------------------------------------------------------------------------------------------------------------------ csv


def csv(table: Table) -> str:
    """The table's numbers as they are: fractions, one column per number, absent is empty."""
    sink = io.StringIO()
    frame = table.data
    if table.is_empty and not len(frame.columns):
        frame = pd.DataFrame(columns=[c.key for c in table.columns])
    frame.to_csv(sink, index=False, lineterminator="\n")
    return sink.getvalue()


# ---------------------------------------------------------------------------------------------------------------- latex

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "−": r"$-$",
    "<": r"$<$", ">": r"$>$", "×": r"$\times$", "·": r"$\cdot$", "→": r"$\to$", "—": "---",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "§": r"\S{}", "¶": r"\P{}", "‖": r"$\|$",
}  # fmt: skip


def tex(table: Table) -> str:
    """A complete ``table`` environment with booktabs rules, every special character escaped."""
    title = f"{_tex(table.title)}. {_tex(table.caption)}".strip()
    if table.is_empty:
        return f"% {table.name}\n\\emph{{{_tex(table.title)}: {_tex(table.empty)}}}\n"
    headers, rows = printed(table)
    spec = "".join("r" if c.kind != "text" else "l" for c in table.columns)
    lines = [
        f"% {table.name}; needs \\usepackage{{booktabs}}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{title}}}",
        f"\\label{{tab:{table.name.replace('_', '-')}}}",
        f"\\begin{{tabular}}{{{spec}}}",
        "\\toprule",
        " & ".join(_tex(h) for h in headers) + r" \\",
        "\\midrule",
        *[" & ".join(_tex_cell(p) for p in row) + r" \\" for row in rows],
        "\\bottomrule",
        "\\end{tabular}",
    ]
    for name, mark in table.symbols().items():
        lines.append(f"\\par\\footnotesize {_tex_mark(mark)} {_tex(table.footnotes[name])}")
    return "\n".join([*lines, "\\end{table}", ""])


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.split()))


def _tex_mark(marks: str) -> str:
    return f"\\textsuperscript{{{_tex(marks)}}}"


def _tex_cell(cell: Printed) -> str:
    # A cell that opens with a bracket would be read as the optional argument of the row end before it.
    text = _tex(cell.text)
    return ("{}" if text.startswith("[") else "") + text + (_tex_mark(cell.marks) if cell.marks else "")


# ----------------------------------------------------------------------------------------------------------------- html


def page(title: str, body: str) -> str:
    """A standalone page: styles inside, no network, no script."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def html_page(table: Table) -> str:
    """The table as a page of its own, for the report."""
    if table.html is not None:
        return table.html
    body = f"<h1>{html.escape(table.title)}</h1>\n"
    if table.caption:
        body += f"<p>{html.escape(table.caption)}</p>\n"
    if table.is_empty:
        return page(table.title, body + f"<p>{html.escape(table.empty)}</p>\n")
    headers, rows = printed(table)
    numeric = [' class="num"' if c.kind != "text" else "" for c in table.columns]
    body += '<div class="scroll"><table>\n<thead><tr>'
    body += "".join(f"<th{n}>{html.escape(h)}</th>" for n, h in zip(numeric, headers, strict=True))
    body += "</tr></thead>\n<tbody>\n"
    before = None
    for row in rows:
        body += "<tr>" if before in (None, row[0].text) else '<tr class="rule">'
        before = row[0].text
        for n, cell in zip(numeric, row, strict=True):
            body += f"<td{n}>{html.escape(cell.text)}" + (f"<sup>{cell.marks}</sup>" if cell.marks else "") + "</td>"
        body += "</tr>\n"
    body += "</tbody></table></div>\n"
    for name, mark in table.symbols().items():
        body += f'<p class="foot"><sup>{mark}</sup> {html.escape(table.footnotes[name])}</p>\n'
    return page(table.title, body)


# -------------------------------------------------------------------------------------------------------------- writing

_WRITERS: dict[str, Any] = {"md": markdown, "csv": csv, "tex": tex, "html": html_page}


def write_tables(
    folder: Path | str, tables: Mapping[str, Table] | Iterable[Table], forms: Iterable[str] = FORMS
) -> list[Path]:
    """``{folder}/{name}.{md,csv,tex,html}`` for every table, atomically; returns the paths in order."""
    written = []
    for table in tables.values() if isinstance(tables, Mapping) else tables:
        for form in forms:
            path = Path(folder) / f"{table.name}.{form}"
            write_atomic(path, _WRITERS[form](table).encode())
            written.append(path)
    return written


def write_page(folder: Path | str, name: str, text: str) -> Path:
    """``{folder}/{name}.html`` of a finished page."""
    path = Path(folder) / f"{name}.html"
    write_atomic(path, text.encode())
    return path


def write_figures(folder: Path | str, figures: Mapping[str, Figure]) -> list[Path]:
    """``{folder}/{name}.svg`` and ``.png`` for every figure, atomically; returns the paths in order."""
    written = []
    for name, figure in figures.items():
        for form, make in (("svg", svg_bytes), ("png", png_bytes)):
            path = Path(folder) / f"{name}.{form}"
            write_atomic(path, make(figure))
            written.append(path)
    return written
