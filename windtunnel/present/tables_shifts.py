"""The table of shifted images: accuracy beside what the same model had before, and how often its answer moved."""

from __future__ import annotations

from typing import Any

import pandas as pd

from windtunnel.present.estimates import count, frame, match, ordered, place_words, put
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import CLEAN, PLACE, UNWARPED, cell_rows, clean_rows, first, only, tidy
from windtunnel.present.style import defense_order


def shifts(metrics: pd.DataFrame, cells: pd.DataFrame) -> Table:
    """Clean cells of shifted sets: accuracy, the same pipeline's accuracy on the unshifted set, and ``consistency``,
    the share of images whose answer the shift left as it was, right or wrong (absent for random defenses)."""
    metrics = tidy(metrics)
    rows = only(cell_rows(metrics, "accuracy"), attack=CLEAN)
    rows = rows[~rows["shift"].isin(UNWARPED)]
    same = metrics[(metrics["metric"] == "consistency") & metrics["value"].notna()]
    before = clean_rows(metrics)
    lines = []
    for key in ordered(rows[PLACE]):
        place = match(key)
        mine = only(rows, **place)
        order = sorted(
            mine.to_dict("records"), key=lambda r: (defense_order(r["defense"]), r["shift"], float(r["severity"]))
        )
        for record in order:
            line: dict[str, Any] = {**place_words(key), "defense": record["defense"], "shift": record["shift"]}
            line["severity"] = int(record["severity"])
            row = first(mine, cell_id=record["cell_id"])
            put(line, "accuracy", row)
            put(line, "consistency", first(same, cell_id=record["cell_id"]))
            put(line, "unshifted", first(before, **place, defense=record["defense"]))
            line["n"] = count(row)
            lines.append(line)
    known = any(line["consistency"] is not None for line in lines)
    defended = any(line["defense"] != "none" for line in lines)
    return Table(
        name="shifts",
        title="Accuracy and consistency on shifted images (%)",
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            *([Column("defense", "defense")] if defended else []),
            Column("shift", "shift"),
            Column("severity", "severity", "count"),
            Column("accuracy", "accuracy", "percent"),
            *([Column("consistency", "answer unchanged", "percent")] if known else []),
            Column("unshifted", "accuracy unshifted", "percent"),
            Column("n", "n", "count"),
        ),
        caption=(
            "No attack. Severity is that of a common corruption, or the pixels of a shift. 'Answer unchanged' is the "
            "share of images whose prediction is that of the unshifted image, right or wrong: a model can keep its "
            "accuracy and still change its mind. 95 % intervals over sources."
        ),
        empty="Not in this run: no model was judged on shifted images.",
    )
