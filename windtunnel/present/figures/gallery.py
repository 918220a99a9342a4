"""Images side by side: clean, adversarial, defended, and the perturbation enlarged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from windtunnel.present import style
from windtunnel.present.figures._pictures import image_at, nothing, said

TITLE = "Clean, adversarial and defended images"
MAX_ROWS = 6


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One sample in its three versions. Images are [H, W, 3] in [0, 1] as stored; predictions are words.

    ``defended`` is the defended *adversarial* image, None where there is none. ``label`` is the true class; ``*_pred``
    and ``*_conf`` what the model said of each version. ``left`` says what the row shows (model, attack, threat,
    defense); ``under`` is a further line under the adversarial image, such as its distance.
    """

    clean: np.ndarray
    adversarial: np.ndarray
    defended: np.ndarray | None
    label: str
    clean_pred: str
    clean_conf: float
    adversarial_pred: str
    adversarial_conf: float
    defended_pred: str = ""
    defended_conf: float = float("nan")
    left: str = ""
    under: str = ""
    under_defended: str = ""


@style.styled
def gallery(pictures: Sequence[Picture], *, enlarge: float | None = None) -> Figure:
    """A row per sample: clean, adversarial, defended, and ``0.5 + k (adversarial - clean)``.

    ``enlarge`` is k; by default the largest whole number with which no drawn perturbation is clipped, the same for all
    rows. Pixels are drawn as they are, without smoothing.
    """
    shown = list(pictures)[:MAX_ROWS]
    if not shown:
        return style.not_in_this_run(TITLE, "no fully driven attack whose images could be shown")
    peak = max(float(np.abs(p.adversarial - p.clean).max()) for p in shown)
    k = enlarge if enlarge is not None else max(1.0, float(np.floor(0.5 / peak + 1e-6))) if peak > 0 else 1.0
    figure = style.new_figure(width=style.WIDTH, height=0.7 + 1.95 * len(shown))
    # The two lines of text under an image hang below its axes: constrained layout needs room for the last row's.
    figure.get_layout_engine().set(h_pad=0.1)
    grid = figure.subplots(len(shown), 4, squeeze=False)
    for axes, title in zip(grid[0], ("clean", "adversarial", "defended", f"perturbation × {k:g}"), strict=True):
        axes.set_title(title, loc="center", fontsize=9)
    for row, p in zip(grid, shown, strict=True):
        image_at(row[0], p.clean, said(p.clean_pred, p.clean_conf, p.label))
        image_at(row[1], p.adversarial, said(p.adversarial_pred, p.adversarial_conf, p.label), p.under)
        if p.defended is None:
            nothing(row[2])
        else:
            image_at(row[2], p.defended, said(p.defended_pred, p.defended_conf, p.label), p.under_defended)
        image_at(row[3], np.clip(0.5 + k * (p.adversarial - p.clean), 0, 1), ("", style.MUTED), "grey = unchanged")
        row[0].set_ylabel(
            f"{p.left}\ntrue class: {p.label}".strip(), fontsize=7.5, rotation=0, ha="right", va="center", labelpad=6
        )
    style.heading(
        figure,
        "What the model saw: clean, adversarial, defended",
        "Under each image: what the model said and how sure it was; red is wrong. Images as stored; examples, not a "
        "measurement.",
    )
    return figure
