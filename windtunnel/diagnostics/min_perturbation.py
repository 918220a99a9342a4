"""Minimal perturbation: the smallest budget at which a short attack still succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from windtunnel.attacks.geometry import random_start
from windtunnel.backend import torch
from windtunnel.diagnostics._probe import ascend, ball, batches, columns
from windtunnel.diagnostics.base import Diagnostic, Inputs
from windtunnel.engine import Pipeline, distances


@dataclass(frozen=True, kw_only=True)
class MinPerturbation(Diagnostic):
    """Distance to the nearest adversarial image that bisection over the budget finds, per sample.

    The largest budget asked is ``reach`` times the cell's eps; ``searches`` bisections follow, each a PGD of ``steps``
    steps of ``step_size`` times the row's own budget on the margin loss, from a random start, later from the last
    adversarial image drawn into the smaller ball. What is kept is the true distance of the image found, not the budget
    that allowed it. Quantities: ``distance`` in units of the pixel range (l2: Euclidean), NaN where nothing was found;
    ``found`` 1 or 0. Both are NaN for a sample that is wrong on the clean image (its distance is no robustness).

    It is an *upper bound* of the distance to the boundary: a stronger attack finds a smaller one. The share of
    samples with ``distance`` above e is an upper bound of robust accuracy at e: the whole curve from one measurement,
    if samples that are wrong on the clean image are counted as lost and those not found as robust up to reach x eps.
    Why distances beside rates: Carlini et al., On Evaluating Adversarial Robustness, 2019,
    https://arxiv.org/abs/1902.06705. Method and defaults (8 x 10 gradient evaluations) are this library's.
    """

    algorithm_version: ClassVar[int] = 1
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    quantities: ClassVar[tuple[str, ...]] = ("distance", "found")
    bill: ClassVar[tuple[str, ...]] = ("searches", "steps")

    reach: float = 8.0
    searches: int = 8
    steps: int = 10
    step_size: float = 0.25

    def __post_init__(self) -> None:
        if self.searches < 1 or self.steps < 1 or self.step_size <= 0 or self.reach <= 0:
            raise ValueError(f"searches and steps must be at least 1, step_size and reach above 0: {self}")

    def measure(self, pipeline: Pipeline, inputs: Inputs) -> Mapping[str, np.ndarray]:
        out = columns(self.quantities, inputs)
        for batch in batches(pipeline, inputs, self.norms):
            right = batch.rows[batch.correct()]
            if not len(right):
                continue
            x0, eps = batch.x[right], batch.eps[right]
            nearest = random_start(x0, eps * self.reach, inputs.norm, batch.random.select(right))
            low, high = torch.zeros_like(eps), torch.full_like(eps, torch.inf)
            asked = eps * self.reach
            for _ in range(self.searches):
                project = ball(x0, asked, inputs.norm)
                start = project(nearest, torch.arange(len(right), device=right.device))
                found, fooled = ascend(
                    batch, start, right, project, length=asked * self.step_size, steps=self.steps, norm=inputs.norm
                )
                # a row that resists the largest budget is asked about it again, from its best image so far
                nearest = torch.where((fooled | torch.isinf(high)).view(-1, 1, 1, 1), found, nearest)
                high = torch.where(fooled, distances(found, x0, inputs.norm), high)
                low = torch.where(fooled, low, asked)
                low = torch.where(low < high, low, 0.0)  # nearer than a budget that failed: that failure meant nothing
                asked = torch.where(torch.isinf(high), eps * self.reach, (low + high) / 2)
            hit = torch.isfinite(high)
            batch.write(out, "found", hit, right)
            batch.write(out, "distance", torch.where(hit, high, torch.nan), right)
        return out
