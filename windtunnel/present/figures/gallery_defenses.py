"""One image behind every kind of defense of a run: clean and attacked, before and after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from windtunnel.present import style, words
from windtunnel.present.figures._pictures import image_at, nothing, said

TITLE = "One image behind each defense"
COLUMNS = ("clean", "defended clean", "adversarial", "defended adversarial")
QUANTILE = 0.995


@dataclass(frozen=True, kw_only=True)
class DefendedRow:
    """What one defense makes of the clean and of the adversarial image, [H, W, 3] in [0, 1], and what the model said.

    ``under`` is a further line under the defended clean image, such as its rate.
    """

    defense: str
    clean: np.ndarray
    clean_pred: str
    clean_conf: float
    adversarial: np.ndarray
    adversarial_pred: str
    adversarial_conf: float
    under: str = ""


@dataclass(frozen=True, kw_only=True)
class DefenseGallery:
    """One sample, one attack that knows of no defense, and a row per defense. ``attack``, ``threat``, ``model`` and
    ``images`` are names; predictions are words."""

    clean: np.ndarray
    clean_pred: str
    clean_conf: float
    adversarial: np.ndarray
    adversarial_pred: str
    adversarial_conf: float
    label: str
    model: str
    images: str
    attack: str
    threat: str
    rows: tuple[DefendedRow, ...]


@style.styled
def gallery_defenses(shown: DefenseGallery | None) -> Figure:
    """A row per defense, the undefended model first: clean, defended clean, adversarial, defended adversarial, and what
    is left of the perturbation, ``k |defended adversarial - defended clean|``.

    k is the same for all rows: the largest whole number with which the middle row clips no more than a two-hundredth of
    its values (rows that leave more are clipped more; their mean stands below). Pixels are drawn as they are, without
    smoothing.
    """
    if shown is None or not shown.rows:
        return style.not_in_this_run(TITLE, "no fully driven attack was judged behind a defense that ignores it")
    left = {"": np.abs(shown.adversarial - shown.clean)}
    left |= {row.defense: np.abs(row.adversarial - row.clean) for row in shown.rows}
    peak = float(np.median([np.quantile(values, QUANTILE) for values in left.values()]))
    k = max(1.0, float(np.floor(1.0 / peak + 1e-6))) if peak > 0 else 1.0
    count = 1 + len(shown.rows)
    figure = style.new_figure(width=style.WIDTH, height=0.8 + 1.4 * count)
    # The two lines of text under an image hang below its axes: constrained layout needs room for the last row's.
    figure.get_layout_engine().set(h_pad=0.04)
    grid = figure.subplots(count, len(COLUMNS) + 1, squeeze=False)
    for axes, title in zip(grid[0], (*COLUMNS, f"left of it × {k:g}"), strict=True):
        axes.set_title(title, loc="center", fontsize=8.5)
    clean = said(shown.clean_pred, shown.clean_conf, shown.label)
    adversarial = said(shown.adversarial_pred, shown.adversarial_conf, shown.label)
    for axes_row, row in zip(grid, (None, *shown.rows), strict=True):
        image_at(axes_row[0], shown.clean, clean)
        image_at(axes_row[2], shown.adversarial, adversarial)
        if row is None:
            nothing(axes_row[1])
            nothing(axes_row[3])
        else:
            before = said(row.clean_pred, row.clean_conf, shown.label)
            after = said(row.adversarial_pred, row.adversarial_conf, shown.label)
            image_at(axes_row[1], row.clean, before, row.under)
            image_at(axes_row[3], row.adversarial, after)
        rest = left[row.defense if row is not None else ""]
        image_at(axes_row[4], np.clip(k * rest, 0, 1), ("", style.MUTED), f"mean {255 * float(rest.mean()):.1f}/255")
        name = "no defense" if row is None else style.wrap(words.defense(row.defense), 1.1, 8.0)
        axes_row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    style.heading(
        figure,
        "What each defense leaves of one image and of its perturbation",
        f"{shown.model} on {shown.images}, true class {shown.label}; {words.attack(shown.attack)} at "
        f"{words.threat(shown.threat)}, knowing of no defense. Under each image what the model said and how sure it "
        "was; red is wrong. One example, not a measurement.",
    )
    return figure
