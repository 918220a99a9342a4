"""Certificates by randomised smoothing: certified accuracy at a few radii, what it cost, how often it abstained."""

from __future__ import annotations

from typing import Any

import pandas as pd

from windtunnel.present import words
from windtunnel.present.estimates import count, frame, place_words, put
from windtunnel.present.layout import Column, Table
from windtunnel.present.select import CLEAN, absent, first, tidy
from windtunnel.present.style import defense_order
from windtunnel.store import CERTIFIED_ACCURACY_FIELDS

TITLE = "Certified accuracy by randomised smoothing"
CAPTION = (
    "The share of all samples whose own class is certified within the L2 radius r (images in [0, 1]), with 95 % "
    "intervals over sources; abstaining is wrong. It holds for the smoothed classifier only, against every attack, "
    "with probability 1 - alpha per sample. Beyond the largest radius that its draws, alpha and sigma allow nothing "
    "can be certified: '0 (no reach)'."
)
EMPTY = "Not in this run: nothing was certified."
RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
KEY = ["dataset", "split", "model", "model_seed", "defense", "sigma", "choose_draws", "draws", "alpha", "looks_words"]


def certificates(accuracy: pd.DataFrame | None) -> Table:
    """A row per image set, model, denoiser, sigma and procedure; ``accuracy`` is ``certified_accuracy.parquet``."""
    rows = tidy(pd.DataFrame(columns=[n for n, _ in CERTIFIED_ACCURACY_FIELDS]) if accuracy is None else accuracy)
    rows = rows.assign(looks_words=[_looks(looks) for looks in rows["looks"]])
    reach = rows.loc[(rows["metric"] == "certified_accuracy") & (rows["radius"] <= rows["largest_radius"]), "radius"]
    shown = [r for r in RADII if r == 0 or r <= reach.max()]
    lines = [_line(dict(zip(KEY, key, strict=True)), part, shown) for key, part in rows.groupby(KEY, dropna=False)]
    lines.sort(
        key=lambda line: (
            line["images"], line["model"], line["defense"] != CLEAN, defense_order(line["defense"]), line["sigma"],
            line["looks"] != "", line["draws"], line["alpha"],
        )
    )  # fmt: skip
    return Table(
        name="certified",
        title=TITLE,
        data=frame(lines),
        columns=(
            Column("images", "images"),
            Column("model", "model"),
            Column("denoiser", "denoiser"),
            Column("sigma_words", "σ"),
            Column("procedure", "draws"),
            *(Column(column_of(r), f"r = {r:g}", "percent") for r in shown),
            Column("average_radius", "mean radius", "decimal"),
            Column("largest_radius", "largest", "decimal"),
            Column("smoothed_accuracy", "majority right", "percent"),
            Column("abstained", "abstains", "percent"),
            Column("draws_used", "draws used", "count"),
            Column("n", "n", "count"),
        ),
        caption=CAPTION,
        empty=EMPTY,
    )


def column_of(radius: float) -> str:
    """The field of certified accuracy at a radius: ``certified_0.25``."""
    return f"certified_{radius:g}"


def _line(key: dict[str, Any], rows: pd.DataFrame, shown: list[float]) -> dict[str, Any]:
    largest = rows["largest_radius"].iloc[0]
    line: dict[str, Any] = {
        **place_words(key), "defense": key["defense"],
        "denoiser": "none" if key["defense"] == CLEAN else words.defense(key["defense"]),
        "sigma": key["sigma"], "sigma_words": f"{key['sigma']:g}", "choose_draws": int(key["choose_draws"]),
        "draws": int(key["draws"]), "alpha": key["alpha"], "looks": key["looks_words"],
        "procedure": procedure(key),
        "largest_radius": None if absent(largest) else float(largest),
    }  # fmt: skip
    for radius in shown:
        found = first(rows, metric="certified_accuracy", radius=radius)
        beyond = radius > 0 and (absent(largest) or radius > largest)
        put(line, column_of(radius), None if beyond else found, why="0 (no reach)")
    for name, metric in (
        ("average_radius", "average_certified_radius"), ("smoothed_accuracy", "smoothed_accuracy"),
        ("abstained", "abstained"),
    ):  # fmt: skip
        put(line, name, first(rows, metric=metric))
    used = first(rows, metric="draws_used")
    line["draws_used"] = None if used is None else float(used["value"])
    line["n"] = count(used)
    return line


def procedure(key: dict[str, Any]) -> str:
    """``100 + 1000, α 0.001``, and the looks of a sequential one."""
    text = f"{int(key['choose_draws'])} + {int(key['draws'])}, α {key['alpha']:g}"
    return text + (f", looks {key['looks_words']}" if key["looks_words"] else "")


def _looks(looks: Any) -> str:
    return "" if looks is None or absent(looks) else ", ".join(str(int(n)) for n in looks)
