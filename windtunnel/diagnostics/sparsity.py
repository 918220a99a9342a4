"""Adversarial sparsity: how much freedom an attack needs beside a random direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.base import Tensor
from windtunnel.attacks.geometry import linf_bounds, per_row, project_l2, random_start, row_norm, unit
from windtunnel.attacks.losses import loss_named
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import Batch, Projection, ascend, ball, batches, columns, random_direction
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline

FIRST_PIXELS = 1024
FIRST_ANGLE = math.pi / 6


@dataclass(frozen=True, kw_only=True)
class Sparsity(Diagnostic):
    """Adversarial sparsity (Olivier & Raj, How Many Perturbations Break This Model? Evaluating Robustness Beyond
    Adversarial Accuracy, 2022, https://arxiv.org/abs/2207.04129). Higher = adversarial images are harder to come by.

    linf: a direction is a sign vector u and a random order of the d = 3 H W values. The first k values are free, the
    others stay at ``eps u``; the size of a direction is the smallest k (1 .. d) with which PGD succeeds. l2: u is
    uniform on the unit sphere; the size is the smallest angle (0 .. pi, radians) of the cone around u in which PGD
    succeeds. Both start at ``eps u`` and are searched by ``searches`` bisections, first at 1024 values or pi / 6,
    doubled while that fails. PGD: ``steps`` steps of ``step_size`` eps on ``loss``; directions count as rows, those
    that succeed leave. After a success the search goes on from that image, drawn into the smaller set
    (``warm_start``).

    Quantities: ``sparsity`` the mean size over ``directions``, ``spread`` their standard deviation (NaN for one
    direction), both only for samples that are clean-correct and that PGD fools without a constraint; ``vulnerable`` 1
    or 0, NaN for misclassified samples; ``clean_correct`` 1 or 0. So a sample that resists (vulnerable 0) and one that
    was wrong anyway (clean_correct 0) stay apart; the released code gives d to both.

    Defaults: 20 steps of .28 eps and 10 bisections are the paper's (0.01 at 0.0356); 16 directions where it takes 64.
    Deviations from the released code: every iterate is judged, not the last alone; the lower bound of the bisection is
    0, not 16 values or pi / 12, which nothing smaller could undercut; a margin loss instead of cross-entropy, which
    vanishes on saturated logits (``loss: ce`` for the paper's); a warm start, which finds slightly smaller sizes in
    fewer steps. Under l2 the box is applied after the cone, so an image at the box may leave its cone.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("sparsity", "spread", "vulnerable", "clean_correct")
    bill: ClassVar[tuple[str, ...]] = ("directions", "searches", "steps")

    directions: int = 16
    searches: int = 10
    steps: int = 20
    step_size: float = 0.28
    loss: str = "margin"
    warm_start: bool = True

    def __post_init__(self) -> None:
        loss_named(self.loss)
        if min(self.directions, self.searches, self.steps) < 1 or self.step_size <= 0:
            raise ValueError(f"directions, searches and steps must be at least 1, step_size above 0: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        for batch in batches(pipeline, inputs, self.norms, copies=self.directions):
            correct = batch.correct()
            batch.write(out, "clean_correct", correct)
            rows = batch.rows[correct]
            if not len(rows):
                continue
            x0, eps = batch.x[rows], batch.eps[rows]
            start = random_start(x0, eps, inputs.norm, batch.random.select(rows))
            images, fooled = self._attack(batch, start, rows, ball(x0, eps, inputs.norm), inputs.norm)
            batch.write(out, "vulnerable", fooled, rows)
            if not bool(fooled.any()):
                continue
            rows = rows[fooled]
            sizes = self._sizes(batch, rows, images[fooled], inputs.norm)
            place = batch.place[rows.cpu().numpy()]
            out["sparsity"][place] = sizes.mean(1)
            if self.directions > 1:
                out["spread"][place] = sizes.std(1, ddof=1)
        return out

    def _attack(
        self, batch: Batch, start: Tensor, rows: Tensor, project: Projection, norm: str
    ) -> tuple[Tensor, Tensor]:
        length, loss = batch.eps[rows] * self.step_size, loss_named(self.loss)
        return ascend(batch, start, rows, project, length=length, steps=self.steps, norm=norm, loss=loss)

    def _sizes(self, batch: Batch, samples: Tensor, adversarial: Tensor, norm: str) -> np.ndarray:
        """[S, directions] float64: the smallest successful size of each direction. ``adversarial`` [S, C, H, W] is the
        success of the attack without a constraint, which is one with the largest size."""
        shape, n = tuple(batch.x.shape[1:]), self.directions
        random = batch.random.select(samples.repeat_interleave(n))  # a sample's directions come from its own stream
        rows = samples.repeat_interleave(n)
        towards = random_direction(random, shape, norm)
        order = random.uniform(*shape).flatten(1).argsort(1).argsort(1).view_as(towards) if norm == "linf" else None
        top, asked = (float(towards[0].numel()), FIRST_PIXELS) if norm == "linf" else (math.pi, FIRST_ANGLE)

        low = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        high = torch.full_like(low, top)
        doubled = torch.full_like(low, min(asked, top))
        nearest = adversarial.repeat_interleave(n, dim=0)
        for _ in range(self.searches):
            bracketed = high.lt(top) | doubled.ge(top)
            size = torch.where(bracketed, (low + high) / 2, doubled)
            if norm == "linf":
                size = size.floor()
            part = torch.nonzero((size > low) & (size < high))[:, 0]
            if not len(part):
                break
            project = _inside(batch, rows[part], towards[part], None if order is None else order[part], size[part])
            begin = nearest[part] if self.warm_start else _ray(batch, rows[part], towards[part])
            begin = project(begin, torch.arange(len(part), device=part.device))
            images, fooled = self._attack(batch, begin, rows[part], project, norm)
            high[part] = torch.where(fooled, size[part], high[part])
            low[part] = torch.where(fooled, low[part], size[part])
            nearest[part] = torch.where(fooled.view(-1, 1, 1, 1), images, nearest[part])
            doubled = (2 * doubled).clamp_max(top)
        return high.view(-1, n).cpu().numpy()


def _ray(batch: Batch, rows: Tensor, towards: Tensor) -> Tensor:
    return batch.x[rows] + per_row(batch.eps[rows], towards) * towards


def _inside(batch: Batch, rows: Tensor, towards: Tensor, order: Tensor | None, size: Tensor) -> Projection:
    """Projection onto the images that a direction of this size allows, and onto ball and box."""
    x0, eps = batch.x[rows], batch.eps[rows]
    if order is None:
        return lambda x, part: project_l2(
            x0[part] + into_cone(x - x0[part], towards[part], size[part]), x0[part], eps[part]
        )
    low, high = linf_bounds(x0, eps)
    fixed = torch.minimum(torch.maximum(_ray(batch, rows, towards), low), high)
    free = order < size.view(-1, 1, 1, 1)
    low, high = torch.where(free, low, fixed), torch.where(free, high, fixed)
    return lambda x, part: torch.minimum(torch.maximum(x, low[part]), high[part])


def into_cone(delta: Tensor, axis: Tensor, angle: Tensor) -> Tensor:
    """The nearest point to ``delta`` [R, C, H, W] that makes at most ``angle`` [R] radians with the unit ``axis``.

    With ``delta = a axis + w``, phi the angle of delta: phi <= angle stays; else the foot on the edge of the cone, at
    ``|delta| cos(phi - angle)`` along it, or the apex 0 where that is negative.
    """
    along = (delta * axis).flatten(1).sum(1).view(-1, 1, 1, 1)
    across = delta - along * axis
    phi = torch.atan2(row_norm(across), along)
    angle = per_row(angle, delta)
    foot = (row_norm(delta) * torch.cos(phi - angle)).clamp_min(0.0)
    edge = torch.cos(angle) * axis + torch.sin(angle) * unit(across)
    return torch.where(phi <= angle, delta, foot * edge)
