"""Rate and distortion of codecs used as defenses: what their images keep, before any model looks."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from windtunnel.present import style, words
from windtunnel.present.figures import _rates
from windtunnel.present.select import absent, clean_rows, only, tidy

TITLE = "Rate against distortion"
KINDS = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
MAX_ROWS = 3
PANEL = (3.0, 2.0)
"""About the size of a panel in inches."""


@style.styled
def rate_distortion(metrics: pd.DataFrame, cells: pd.DataFrame) -> Figure:
    """Payload bits per pixel (log) against PSNR and SSIM of the defended clean images; codec families are connected.

    A row of panels per image set with at least two codec settings. The images are the same whichever model looks at
    them: of several models' rows the one over most images is drawn. What stands in ``rate_accuracy`` on the same axis
    is to be read against this: two codecs differ in kind only where their rates are alike.
    """
    metrics = tidy(metrics)
    rates = _rates.rate_rows(metrics)
    keep = ["dataset", "split"]
    sets = [key for key, part in rates.groupby(keep, sort=True) if part["defense"].nunique() > 1]
    sets.sort(key=lambda key: (-only(rates, dataset=key[0], split=key[1])["defense"].nunique(), key))
    if not sets:
        return style.not_in_this_run(TITLE, "no image set was put through two settings of a codec")
    sets = sets[:MAX_ROWS]
    rates = pd.concat([only(rates, dataset=d, split=s) for d, s in sets])
    families = _rates.families_of(list(rates["defense"]))
    given = style.family_colours(families)
    colours = {family: given[family] for family in families}
    figure = style.new_figure(height=0.85 + 2.7 * len(sets) + 0.2 * _rates.legend_rows(families, bounds=False))
    panels = figure.subplots(len(sets), len(KINDS), squeeze=False)
    for row_of_axes, (dataset, split) in zip(panels, sets, strict=True):
        rate = {d: row["value"] for d, row in _widest(only(rates, dataset=dataset, split=split)).items()}
        for axes, (kind, title) in zip(row_of_axes, KINDS.items(), strict=True):
            rows = clean_rows(metrics, kind)
            rows = only(rows[rows["defense"].isin(list(rate))], dataset=dataset, split=split)
            found = _widest(rows)
            values = [v for r in found.values() for v in (r["value"], r["ci_low"], r["ci_high"]) if not absent(v)]
            _rates.x_axis(axes, list(rate.values()))
            if values:
                room = 0.12 * (max(values) - min(values)) or 0.1
                axes.set_ylim(min(values) - room, max(values) + room)
            # So many ticks whatever the height: their labels must not grow wider once the layout stands.
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            _rates.draw(axes, rate, found, colours, PANEL)
            counts = sorted({int(r["n"]) for r in found.values()})
            size = "" if not counts else f" (n = {counts[0]}" + (f" to {counts[-1]})" if counts[1:] else ")")
            axes.set_title(title + size, fontsize=8.5)
        row_of_axes[0].set_ylabel(f"{words.image_set(dataset, split)}\ndefended clean images", fontsize=8)
    _rates.legend(figure, colours, bounds=False)
    style.heading(
        figure,
        "Codecs as defenses: what a bit keeps of the image",
        "Defended clean images against the originals, mean over images. One point per setting, a line per family and "
        "training seed (those after the first thinner).",
    )
    return figure


def _widest(rows: pd.DataFrame) -> dict[str, pd.Series]:
    """Of every defense the row over most images; ties by model."""
    order = rows.sort_values(["n", "model", "model_seed"], ascending=[False, True, True], kind="stable")
    return {row["defense"]: row for _, row in order.drop_duplicates("defense").iterrows()}
