"""How an image stands in a gallery: without smoothing, the model's word under it. Shared by the galleries."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from windtunnel.present import style


def said(pred: str, conf: float, label: str) -> tuple[str, str]:
    """What the model said and how sure it was, and the colour of right or wrong."""
    sure = "" if np.isnan(conf) else f" ({100 * conf:.0f} %)"
    return f"{pred}{sure}", style.GREEN if pred == label else style.VERMILION


def image_at(axes: Axes, image: np.ndarray, said: tuple[str, str], under: str = "") -> None:
    """An image [H, W, 3] with what was said of it, and a further line below."""
    axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
    bare(axes)
    axes.text(
        0.5,
        -0.04,
        said[0],
        color=said[1],
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=8,
        fontweight="bold",
    )
    if under:
        axes.text(0.5, -0.04 if not said[0] else -0.17, under, color=style.MUTED, transform=axes.transAxes,
        ha="center", va="top", fontsize=7)  # fmt: skip


def nothing(axes: Axes, text: str = "no defense") -> None:
    """An empty place and why it is empty."""
    bare(axes)
    axes.set_box_aspect(1)  # as tall as the images beside it, so that titles above stand in one line
    axes.text(0.5, 0.5, text, color=style.MUTED, transform=axes.transAxes, ha="center", va="center", fontsize=8)


def bare(axes: Axes) -> None:
    """No ticks, no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
