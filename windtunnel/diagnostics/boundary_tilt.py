"""Boundary tilting: the angle between where a model looks and where the classes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.attacks.geometry import per_row
from windtunnel.attacks.losses import margin
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch, batches, by_id, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, judged

OVERSHOOT = 0.02
HALVINGS = 12


@dataclass(frozen=True, kw_only=True)
class BoundaryTilt(Diagnostic):
    """Angles of the local weight vector (Tanay & Griffin, A Boundary Tilting Perspective on the Phenomenon of
    Adversarial Examples, 2016, https://arxiv.org/abs/1608.07690). Radians, in pixel space, l2.

    The paper shows for linear classifiers that their adversarial strength depends only on the deviation angle between
    their weight vector and that of the nearest-centroid classifier. Here, per sample of label i with runner-up j at x,
    ``w = grad_x (z_j - z_i)`` takes the place of the weight vector, which it is for a linear model.

    ``tilt`` is the angle of w with ``mu_j - mu_i``, the difference of the class means of the inputs: 0 = the model
    looks where the classes differ, pi/2 = its boundary is tilted along directions that the data do not use (0 .. pi;
    above pi/2 it looks away). This is the paper's definition, chosen because it speaks of tilting and not of curvature,
    and needs no second model. ``bend`` is the angle of w with the way to the nearest boundary point that DeepFool steps
    in the box find (at most ``steps``, then bisection on the straight line), w without the pixels that the box holds at
    x: 0 for any linear model, whatever its tilt, as long as the way meets no side of the box. So it says how far one
    gradient may stand for the boundary at all.

    NaN: samples that are wrong on the clean image, a zero gradient; ``tilt`` where the inputs hold no image of the
    runner-up's class; ``bend`` where no boundary was reached. ``tilt`` depends on the set of inputs through the class
    means (the sample's own image is one of them); take at least some tens per class.

    Deviations: the paper folds the angle into [0, pi/2]; we keep the sign. Its data are centred binary problems.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("tilt", "bend")
    bill: ClassVar[tuple[str, ...]] = ("steps",)

    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        means = _class_means(inputs)
        for batch in batches(pipeline, inputs, self.norms):
            logits, value, w = batch.gradient(batch.x, margin)
            wrong = judged(logits, batch.y)[1]
            rival = logits.scatter(1, batch.y[:, None], -torch.inf).argmax(1)
            known = torch.tensor([int(j) in means for j in rival.tolist()], device=batch.x.device)
            seen = ~wrong & (w != 0).flatten(1).any(1)
            rows = batch.rows[seen & known]
            if len(rows):
                ways = [means[j] - means[i] for i, j in zip(batch.y[rows].tolist(), rival[rows].tolist(), strict=True)]
                batch.write(out, "tilt", angle(w[rows], torch.from_numpy(np.stack(ways)).to(w.device)), rows)
            rows = batch.rows[seen]
            if len(rows):
                nearest, reached = self._boundary(batch, rows, value[rows], w[rows])
                bend = angle(_free(w[rows], batch.x[rows]), nearest - batch.x[rows])
                batch.write(out, "bend", torch.where(reached, bend, torch.nan), rows)
        return out

    def _boundary(self, batch: Batch, rows: Tensor, value: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """(a boundary point [R, C, H, W], whether one was reached [R])."""
        x0 = batch.x[rows]
        x, reached = x0, torch.zeros_like(rows, dtype=torch.bool)
        for _ in range(self.steps):
            w = _free(w, x)
            share = -value.double() / w.double().square().flatten(1).sum(1).clamp_min(1e-30)
            moved = (x + (1 + OVERSHOOT) * per_row(share, x) * w).clamp(0, 1)
            x = torch.where(reached.view(-1, 1, 1, 1), x, moved)
            logits, value, w = batch.gradient(x, margin, rows)
            reached = reached | judged(logits, batch.y[rows])[1]
            if bool(reached.all()):
                break
        low, high = torch.zeros_like(value, dtype=torch.float64), torch.ones_like(value, dtype=torch.float64)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            wrong = judged(batch.logits(x0 + per_row(middle, x) * (x - x0), rows), batch.y[rows])[1]
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        return x0 + per_row(high, x) * (x - x0), reached


def _free(w: Tensor, x: Tensor) -> Tensor:
    """A direction without the pixels that it would push out of the box."""
    return torch.where(((x <= 0) & (w < 0)) | ((x >= 1) & (w > 0)), 0.0, w)


def angle(a: Tensor, b: Tensor) -> Tensor:
    """[R] float64 angle between rows in [0, pi], exact near 0 and pi; NaN for a zero row."""
    u, v = a.double().flatten(1), b.double().flatten(1)
    u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


def _class_means(inputs: Inputs) -> dict[int, np.ndarray]:
    """[C, H, W] float64 per label, summed in the order of the sample ids."""
    order, labels = by_id(inputs), np.asarray(inputs.labels)
    return {
        int(label): inputs.images[order[labels[order] == label]].mean(0, dtype=np.float64)
        for label in np.unique(labels)
    }
