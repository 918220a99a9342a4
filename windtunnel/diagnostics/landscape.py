"""Landscape: the loss on a plane through the image, spanned by the gradient's step and a random one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import loss_named
from windtunnel.diagnostics._probe import batches, columns, direction, random_direction
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, judged

NORMS = ("linf", "l2")


@dataclass(frozen=True, kw_only=True)
class Landscape(Diagnostic):
    """Summaries of the margin on ``points`` x ``points`` places of the plane ``x + eps (a g + b r)``, clipped to the
    box: g = sign(grad m(x)), r random signs (l2: unit gradient, random unit vector), a and b evenly spaced in
    [-``span``, ``span``]; ``m = max_{j != y} z_j - z_y`` on the real pipeline.

    Quantities: ``wrong_share`` share of the places that are misclassified; ``wrong_share_ball`` the same where
    |a|, |b| <= 1; ``monotonicity`` share of the steps along +g (b = 0, from a = 0 to span) on which m rises: 1 for an
    honest gradient, about 1/2 for a useless one; ``roughness`` mean |second difference| of m along both axes over the
    range of m on the plane: 0 for a linear model (up to the box), large for a masked or shattered one;
    ``gradient_rise`` and ``random_rise``: ``m(a = 1, b = 0) - m(x)`` and ``m(a = 0, b = 1) - m(x)``, at the nearest
    place of the grid.

    On top of ``quantities`` the slice itself: ``slice_<row>_<column>``, m at place ``row`` of ``axis(points, span)``
    along g and ``column`` along r (the image itself in the middle; NaN where m is not finite), and ``slice_span``, the
    setting, without which the places mean nothing. These are for figures: they have no row in the metrics.

    All NaN for samples that are wrong on the clean image; ``roughness`` NaN where m is constant. Mind that the square
    |a|, |b| <= 1 is wider than the ball: for linf the ball is |a| + |b| <= 1 (random signs agree with g somewhere and
    oppose it elsewhere), for l2 about a^2 + b^2 <= 1. Many papers show slices of this kind as evidence of masking or
    its absence (after Li et al. 2018, https://arxiv.org/abs/1712.09913, who cut in weight space) and judge them by eye;
    the summaries are this library's. ``grid`` below gives finer planes and other losses. Costs ``points``^2 forward
    passes and one gradient.
    """

    algorithm_version: ClassVar[int] = 2
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = (
        "wrong_share", "wrong_share_ball", "monotonicity", "roughness", "gradient_rise", "random_rise",
    )  # fmt: skip
    bill: ClassVar[tuple[str, ...]] = ("points", "points")

    points: int = 9
    span: float = 2.0

    def __post_init__(self) -> None:
        _checked(self.points, self.span)

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        m, wrong = _planes(pipeline, inputs, "margin", self.points, self.span)
        middle = self.points // 2
        places = axis(self.points, self.span)
        one = int(np.abs(places - 1).argmin())
        inside = np.abs(places) <= 1 + 1e-12
        out = columns(self.quantities, inputs)
        with np.errstate(invalid="ignore", divide="ignore"):
            bends = (np.abs(np.diff(m, 2, axis=1)).mean((1, 2)) + np.abs(np.diff(m, 2, axis=2)).mean((1, 2))) / 2
            spread = m.max((1, 2)) - m.min((1, 2))
            out["roughness"][:] = np.where(spread > 0, bends / spread, np.nan)
        out["wrong_share"][:] = wrong.mean((1, 2))
        out["wrong_share_ball"][:] = wrong[:, inside][:, :, inside].mean((1, 2))
        out["monotonicity"][:] = (np.diff(m[:, middle:, middle], axis=1) > 0).mean(1)
        out["gradient_rise"][:] = m[:, one, middle] - m[:, middle, middle]
        out["random_rise"][:] = m[:, middle, one] - m[:, middle, middle]
        out["slice_span"] = np.full(len(m), float(self.span))
        for row, column in np.ndindex(m.shape[1:]):
            values = m[:, row, column]
            out[f"slice_{row}_{column}"] = np.where(np.isfinite(values), values, np.nan)
        for values in out.values():
            values[wrong[:, middle, middle]] = np.nan
        return out


def axis(points: int, span: float) -> np.ndarray:
    """[points] float64 places a (or b) in units of eps; the middle one is exactly 0."""
    half = points // 2
    return np.arange(-half, half + 1) * (span / half)


def grid(
    pipeline: Pipeline, inputs: Inputs, *, loss: str = "margin", points: int = 21, span: float = 2.0
) -> np.ndarray:
    """[N, points, points] float64: ``loss`` (margin, ce, dlr) at x + eps (a g + b r); axis 1 is a (the gradient of that
    loss), axis 2 is b (random), both at ``axis(points, span)``. Wrong samples have a plane, too."""
    _checked(points, span)
    return _planes(pipeline, inputs, loss, points, span)[0]


def _planes(pipeline: Pipeline, inputs: Inputs, loss: str, points: int, span: float) -> tuple[np.ndarray, np.ndarray]:
    """(values [N, G, G] float64, misclassified [N, G, G] bool)."""
    n, function = len(inputs.images), loss_named(loss)
    values, wrong = np.zeros((n, points, points)), np.zeros((n, points, points), dtype=bool)
    places = axis(points, span)
    for batch in batches(pipeline, inputs, NORMS):
        x, length = batch.x, per_row(batch.eps, batch.x)
        _, _, gradient = batch.gradient(x, function)
        up = length * direction(gradient, inputs.norm)
        aside = length * random_direction(batch.random, tuple(x.shape[1:]), inputs.norm)
        for i, a in enumerate(places):
            for j, b in enumerate(places):
                logits = batch.logits((x + float(a) * up + float(b) * aside).clamp(0, 1))
                values[batch.place, i, j] = function(logits, batch.y).double().cpu().numpy()
                wrong[batch.place, i, j] = judged(logits, batch.y)[1].cpu().numpy()
    return values, wrong


def _checked(points: int, span: float) -> None:
    if points < 3 or points % 2 == 0 or span <= 0:
        raise ValueError(f"points must be odd and at least 3, span above 0, not {points} and {span}")
